"""Tensor-parallel sharding of a weight by its training name, and its inverse.

Sharding is megatron-core's: columns of the first matrix of a pair, rows of the second (Shoeybi et al., arXiv 1909.08053),
whole key-value groups in linear_qkv, and gate and up separately in linear_fc1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported lazily: commands without torch ask for shapes
    from torch import Tensor

BY_ROWS = ("embedding.word_embeddings.weight", "output_layer.weight", "linear_qkv.weight", "linear_qkv.bias")
BY_COLUMNS = ("linear_proj.weight", "linear_fc2.weight")
IN_HALVES = ("linear_fc1.weight",)


def shard(name: str, whole: Tensor, rank: int, ranks: int) -> Tensor:
    """The part of `whole` that tensor-parallel rank `rank` of `ranks` holds."""
    from torch import cat

    if name.endswith(IN_HALVES):
        return cat([half.chunk(ranks)[rank] for half in whole.chunk(2)])
    if name.endswith(BY_ROWS):
        return whole.chunk(ranks)[rank]
    if name.endswith(BY_COLUMNS):
        return whole.chunk(ranks, dim=1)[rank]
    return whole


def join(name: str, shards: Sequence[Tensor]) -> Tensor:
    """The shards of all ranks, in order -> the whole weight; the inverse of `shard`."""
    from torch import cat

    if name.endswith(IN_HALVES):
        return cat([cat(halves) for halves in zip(*(part.chunk(2) for part in shards))])
    if name.endswith(BY_ROWS):
        return cat(list(shards))
    if name.endswith(BY_COLUMNS):
        return cat(list(shards), dim=1)
    return shards[0]


def whole_shape(name: str, shape: Sequence[int], ranks: int) -> tuple[int, ...]:
    """Full shape of the weight of which each rank holds `shape`."""
    if name.endswith(IN_HALVES + BY_ROWS):
        return shape[0] * ranks, *shape[1:]
    if name.endswith(BY_COLUMNS):
        return shape[0], shape[1] * ranks
    return tuple(shape)


def runs(name: str, shape: Sequence[int], rank: int, ranks: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Ranges of the shard of rank `rank`, of `shape`, in the full weight: (first row, last row + 1, offsets in the full
    weight)."""
    rows, rest = shape[0], (0,) * (len(shape) - 1)
    if name.endswith(IN_HALVES):
        half = rows // 2
        return [(0, half, (rank * half, *rest)), (half, rows, ((ranks + rank) * half, *rest))]
    if name.endswith(BY_ROWS):
        return [(0, rows, (rank * rows, *rest))]
    if name.endswith(BY_COLUMNS):
        return [(0, rows, (0, rank * shape[1]))]
    return [(0, rows, (0, *rest))]
