"""Gram matrices of block gradients, one for each weight matrix.

The gradients of all blocks are held at once, so matrices are done a group at a time, as many as fit into the memory
that may be used; each group takes a pass over the rows. Nothing is approximated, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from model.config import ModelConfig
from model.routing import route
from model.weight_names import to_hugging_face
from pretrain.conflict.blocks import BlockSizes, RowShare

ROWS_AT_ONCE = 2**22  # elements of a gradient that are made float64 at a time


def matrices(
    model: torch.nn.Module, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, torch.nn.Parameter]:
    """(training name, parameter) of the layers' trainable weight matrices whose name is `wanted`."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith("decoder.layers.") and parameter.dim() == 2 and parameter.requires_grad and wanted(name)
    }


def groups_that_fit(chosen: dict[str, torch.nn.Parameter], sizes: BlockSizes, memory: float) -> list[list[str]]:
    """Split names into groups whose gradients of all blocks take at most `memory` bytes (or into groups of one matrix).

    If it is more).
    """
    groups: list[list[str]] = [[]]
    used = 0
    for name, parameter in chosen.items():
        need = 2 * sizes.blocks * parameter.numel() * 4
        if groups[-1] and used + need > memory:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += need
    return groups


def gram_matrices(
    model: torch.nn.Module, config: ModelConfig, shares: Sequence[RowShare], sizes: BlockSizes, names: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name of a matrix, float64 [2 * blocks, 2 * blocks] on the CPU) of the matrices that `names`
    hold.

    Entry i, j is the inner product of the gradients of blocks i and j: text blocks first, then those of pictures.
    `model` is called as a `UniXModel` is. Gradients are summed in float32, whatever the weights are.
    """
    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for name in names]
    sums = [
        torch.zeros(2 * sizes.blocks, *parameter.shape, dtype=torch.float32, device=parameter.device)
        for parameter in chosen
    ]
    with _gradients_returned(model):
        for share in shares:
            for block, gradients in _gradients(model, config, share, sizes, chosen):
                for total, gradient in zip(sums, gradients):
                    if gradient is not None:
                        total[block] += gradient
    for name in names:
        blocks_last = sums.pop(0).permute(1, 2, 0)
        for part, stacked in to_hugging_face(config, [(name, blocks_last)]):
            yield part, _gram(stacked.reshape(-1, 2 * sizes.blocks))


@contextmanager
def _gradients_returned(model: torch.nn.Module) -> Iterator[None]:
    """Let linear layers return their weights' gradients. Those of an engine may add them to its buffers instead, and return
    memory that nothing was written to: megatron-core's by the first of these attributes, transformer-engine's by the second."""
    names = ("gradient_accumulation_fusion", "fuse_wgrad_accumulation")
    changed = [(module, name) for module in model.modules() for name in names if getattr(module, name, False)]
    try:
        for module, name in changed:
            setattr(module, name, False)
        yield
    finally:
        for module, name in changed:
            setattr(module, name, True)


def _gradients(model, config: ModelConfig, share: RowShare, sizes: BlockSizes, chosen) -> Iterator[tuple[int, tuple]]:
    """Yield (block, gradient of each chosen parameter) of a row's text targets and of its image targets.

    One forward pass.
    """
    row = share.row.to(chosen[0].device)
    routing = route(row.positions, row.to_document, row.lengths, config.head_dim, config.rope, chosen[0].dtype)
    losses, _ = model(row.ids, row.labels, row.targets, routing)
    text, image = losses[: share.num_text], losses[share.num_text :]
    if len(text):
        yield share.text_block, torch.autograd.grad(text.sum(), chosen, retain_graph=len(image) > 0, allow_unused=True)
    if len(image):
        yield sizes.blocks + share.image_block, torch.autograd.grad(image.sum(), chosen, allow_unused=True)


def _gram(gradients: Tensor) -> Tensor:
    """Gram matrix of gradients: float32 [n, blocks] -> float64 [blocks, blocks]."""
    total = torch.zeros(gradients.shape[1], gradients.shape[1], dtype=torch.float64, device=gradients.device)
    for part in gradients.split(max(1, ROWS_AT_ONCE // gradients.shape[1])):
        part = part.double()
        total += part.t() @ part
    return total.cpu()
