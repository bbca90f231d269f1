"""The `model` section of a run's YAML from a model's configuration, for runs that start from given weights."""

from __future__ import annotations

import dataclasses
from typing import Any

from model.config import ModelConfig, layer_kinds
from model.families import flavour_of
from model.layer_kinds import SHARED
from pretrain.config import ModelSection
from pretrain.system.errors import UserError

WORKED_OUT = {"image_token_offset", "max_position_embeddings", "rope_scaling"}
SAME_IN_BOTH = tuple(
    spec.name
    for spec in dataclasses.fields(ModelSection)
    if spec.name in ModelConfig.__dataclass_fields__ and spec.name not in WORKED_OUT
)
"""Fields that a section and a model have alike: a new one of this name in both is taken over in either direction."""


def section_of(config: ModelConfig, tokenizer: Any | None = None) -> ModelSection:
    """Section for this model with this tokenizer, by whose end-of-text token its flavour is found among families with the
    same layers. Raises UserError for layer kinds or switches that no section can express."""
    names = (*SAME_IN_BOTH, "image_token_offset", "max_position_embeddings")
    return ModelSection(
        **{name: getattr(config, name) for name in names},
        **_kinds_of(config.layer_kinds),
        flavour=flavour_of(config, tokenizer),
        rope_scaling=config.rope_scaling or {},
    )


def _kinds_of(kinds: tuple[str, ...]) -> dict:
    """shallow, deep, every and kind for a list of layer kinds."""
    apart = sorted(set(kinds) - {SHARED})
    if not apart:
        return {}
    if len(apart) == 1:
        (kind,) = apart
        shallow = next((index for index, found in enumerate(kinds) if found != kind), len(kinds))
        deep = next((index for index, found in enumerate(kinds[shallow:][::-1]) if found != kind), 0)
        choices = [{"shallow": shallow, "deep": deep}, *({"every": every} for every in range(1, len(kinds) + 1))]
        for choice in choices:
            if layer_kinds(len(kinds), kind=kind, **choice) == kinds:
                return {"kind": kind, **choice}
    raise UserError(f"layers are {list(kinds)}, which no section can say: train from the checkpoint that has them")


def section_yaml(config: ModelConfig, tokenizer: Any | None = None) -> str:
    """The section as YAML, to paste into the configuration of a run."""
    import yaml

    comment = "# the model section of a run that starts from these weights: paste it in place of the one there\n"
    try:
        section = section_of(config, tokenizer)
    except UserError as error:
        return f"{comment}# it cannot be written: {error}\n"
    defaults = {spec.name: spec.default for spec in dataclasses.fields(ModelSection)}
    values = {
        key: value
        for key, value in dataclasses.asdict(section).items()
        if value != {} and (value != defaults[key] or key not in ("shallow", "deep", "every"))
    }
    return comment + yaml.safe_dump({"model": values}, sort_keys=False)
