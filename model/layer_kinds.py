"""Layer kinds as a table: everything else about a kind follows from its entry. Without heavy imports.

The export's code has a table of the same kinds (`LAYER_KINDS` of `hf/configuration_uni_x.py`), because it is used alone; a
test compares the two.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

DOCUMENT, SEPARATED_ORDER = "document", "separated"
"""Orders of a row's tokens: as documents have them, or all text before all vision tokens (`model.routing`)."""


@dataclass(frozen=True)
class LayerKind:
    """Properties of one layer kind.

    vision_weights: what vision tokens have of their own: "none", "mlp", or "all", norms included.
    within_modality: whether a token attends to tokens of its own modality only.
    layer: the class of megatron-core's TransformerLayer or the like that computes it, as "module:class"; imported when used.
    """

    vision_weights: str
    within_modality: bool
    layer: str

    @property
    def branches(self) -> dict[str, str]:
        """Branch -> prefix of its weights' names. "" is a plain layer's branch, and any name begins with ""."""
        return {
            "none": {"": ""},
            "mlp": {"": "", "vision": "mlp."},
            "all": {"text": "", "vision": ""},
        }[self.vision_weights]

    @property
    def order_wanted(self) -> str:
        """Token order that the layer takes."""
        return SEPARATED_ORDER if self.within_modality or self.vision_weights == "all" else DOCUMENT

    @property
    def order_left(self) -> str:
        """Token order that the layer returns: two MLPs leave tokens separated."""
        return DOCUMENT if self.vision_weights == "none" and not self.within_modality else SEPARATED_ORDER

    def met_by_both(self, weight: str) -> bool:
        """Whether text and vision tokens share the weight of this name, as "mlp.linear_fc1.weight"."""
        return not weight.startswith(self.branches.get("vision", weight + "."))

    @property
    def layer_class(self) -> Any:
        """The class that `layer` names."""
        module, name = self.layer.split(":")
        return getattr(importlib.import_module(module), name)


SHARED, SEPARATED, MOT, MOE_HARD = "shared", "separated", "mot", "moe_hard"

KINDS = {
    SEPARATED: LayerKind("all", within_modality=True, layer="model.layer_specs:SeparatedLayer"),
    MOT: LayerKind("all", within_modality=False, layer="model.layer_specs:MotLayer"),
    MOE_HARD: LayerKind("mlp", within_modality=False, layer="model.layer_specs:HardMoeLayer"),
    SHARED: LayerKind("none", within_modality=False, layer="model.layer_specs:SharedLayer"),
}
"""By the name in `model.kind` of a run's configuration and in `layer_kinds` of an export; the first is the default."""

APART = tuple(kind for kind in KINDS if kind != SHARED)
"""The kinds that a run chooses between for some of its layers; the others are shared."""
