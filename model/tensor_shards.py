"""How a whole weight is cut over tensor-parallel ranks, by its training name; the inverse puts it together again.

The cuts are megatron-core's: columns of the first matrix of a pair, rows of the second (Shoeybi et al., arXiv
1909.08053), whole key-value groups in linear_qkv, and gate and up each by themselves in linear_fc1.
"""

from __future__ import annotations

from torch import Tensor, cat
from torch.nn.functional import pad

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
BY_ROWS = ("linear_qkv.weight", "linear_qkv.bias")
BY_COLUMNS = ("linear_proj.weight", "linear_fc2.weight")
IN_HALVES = ("linear_fc1.weight",)


def padded_rows(rows: int, size: int) -> int:
    """Rows of a vocabulary matrix over all ranks: a multiple of the tensor-parallel size."""
    return -(-rows // size) * size


def shard(name: str, whole: Tensor, rank: int, size: int) -> Tensor:
    """The part of `whole` that tensor-parallel rank `rank` of `size` holds; rows that pad the vocabulary are zero."""
    if size == 1:
        return whole
    if name in VOCABULARY:
        missing = padded_rows(len(whole), size) - len(whole)
        return pad(whole, (0, 0, 0, missing)).chunk(size)[rank]
    if name.endswith(IN_HALVES):
        return cat([half.chunk(size)[rank] for half in whole.chunk(2)])
    if name.endswith(BY_ROWS):
        return whole.chunk(size)[rank]
    if name.endswith(BY_COLUMNS):
        return whole.chunk(size, dim=1)[rank]
    return whole


def join(name: str, shards: list[Tensor], vocab_size: int) -> Tensor:
    """The shards of all ranks, in order -> the whole weight; the inverse of `shard`."""
    if len(shards) == 1:
        return shards[0]
    if name in VOCABULARY:
        return cat(shards)[:vocab_size]
    if name.endswith(IN_HALVES):
        return cat([cat(halves) for halves in zip(*(part.chunk(2) for part in shards))])
    if name.endswith(BY_ROWS):
        return cat(shards)
    if name.endswith(BY_COLUMNS):
        return cat(shards, dim=1)
    return shards[0]
