"""Weight names of the published Uni-X checkpoints, and ours for the same weights.

The published models count the vision branches of the first and of the last separated layers apart, each from 0; ours
carry the index of their layer. All other names are those of Qwen in both.
"""

from __future__ import annotations

from pretrain.system.errors import UserError

# prefix in the published checkpoint -> where its layer 0 stands in the model, from the number of layers and of last ones
VISION_PREFIXES = {
    "model.vision_encode_layers.": lambda num_layers, num_last: 0,
    "model.vision_decode_layers.": lambda num_layers, num_last: num_layers - num_last,
}


def from_released(name: str, num_layers: int, num_last: int) -> str:
    """Our name of the published weight `name`, in a model whose last `num_last` of `num_layers` are separated.

    Raises UserError for a vision layer that such a model does not have.
    """
    for prefix, first in VISION_PREFIXES.items():
        if name.startswith(prefix):
            index, rest = name.removeprefix(prefix).split(".", 1)
            layer = first(num_layers, num_last) + int(index)
            if layer >= num_layers:
                raise UserError(
                    f"weight {name} would belong to layer {layer} of {num_layers}: "
                    "check num_vision_decode_layers in the published config.json"
                )
            return f"model.vision_layers.{layer}.{rest}"
    return name
