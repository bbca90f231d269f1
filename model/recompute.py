"""Selective activation recomputation of norms and activation functions: cheap compared with the memory they take.

The outputs of norms and of the activation function, inputs of matrix products, are a third of a layer's saved activations.
They are recomputed by the same kernel, bit for bit, from inputs that are saved in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Recipe = Callable[[torch.nn.Module], Callable[[Tensor], Tensor]]


def compute_cheap_parts_again(layer: torch.nn.Module, recipes: Mapping[type, Recipe]) -> None:
    """Recompute the outputs of `layer`'s modules of these classes in the backward pass instead of saving them.

    Such a module is a function of one tensor (and its weights) with one output, and draws nothing at random. A recipe takes
    the module, as its forward pass has just left it, and gives that function: the weights themselves are taken along, because
    ZeRO has them away when it is called.
    """
    made: dict[int, tuple[Callable[[Tensor], Tensor], Tensor, Tensor]] = {}  # by output, while the layer runs
    contexts: list = []

    def note(module, arguments, output) -> None:
        if contexts and torch.is_grad_enabled():
            # Outputs are held until the layer is done, so that their memory is not reused meanwhile.
            made[output.untyped_storage()._cdata] = recipes[type(module)](module), arguments[0], output

    def pack(kept: Tensor):
        found = made.get(kept.untyped_storage()._cdata)
        if found is None:
            return kept
        make, given, _ = found
        return make, given.detach(), kept.shape, kept.stride(), kept.storage_offset()

    def unpack(kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        make, given, *place = kept
        with torch.no_grad():
            return make(given).as_strided(*place)

    def begin(*_) -> None:
        contexts.append(torch.autograd.graph.saved_tensors_hooks(pack, unpack))
        contexts[-1].__enter__()

    def end(*_) -> None:
        contexts.pop().__exit__(None, None, None)
        made.clear()

    for module in layer.modules():
        if type(module) in recipes:
            module.register_forward_hook(note)
    layer.register_forward_pre_hook(begin)
    layer.register_forward_hook(end, always_call=True)
