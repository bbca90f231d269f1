"""Token routing, once per row: the two orders of a row's tokens, and what attention needs for each.

A row of S tokens exists in document order and in separated order (its text tokens, then its vision tokens, both as they
stand in the documents). Both are permutations of the same tokens. The ids enter in separated order, so embeddings come
out routed; activations are permuted only where a separated layer meets a shared one. Nothing here is model-specific:
the same `RowRouting` is handed, untouched, to every layer of every pipeline stage.

With sequence parallelism each tensor-parallel rank holds S / tp tokens. In document order that is a contiguous share of
the row; in separated order it is a contiguous share of the text tokens, then one of the vision tokens, so that the
branches of a separated layer take slices there too. Over all ranks the separated order is then rank-major, still one
permutation of the row, and a change of order crosses ranks: one gather, of which each rank keeps its share.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import cast

import numpy
import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from model.hf.rope_uni_x import Rope, frequencies
from model.layer_kinds import DOCUMENT, SEPARATED_ORDER


@dataclass
class PaddedGroup:
    """Documents of similar length, computed as one padded batch without a varlen kernel (CPUs, float32)."""

    gather: Tensor  # int64 [documents * length]: token of each slot; slots past a document's end repeat its last token
    keep: Tensor  # int64 [tokens of the group]: slots that hold a real token, document after document
    documents: int
    length: int


@dataclass(kw_only=True)
class Segments(PackedSeqParams):
    """Documents of one slice of a row: input of rotary embedding and per-document attention.

    It is a `PackedSeqParams`, because that is the one argument that megatron-core hands from block to layer to
    attention as it is.
    """

    cos: Tensor  # [tokens, 1, head_dim], from the positions in document order
    sin: Tensor  # [tokens, 1, head_dim]
    angles: Tensor | None = None  # float32 [tokens, 1, 1, head_dim], for a kernel that takes cosines itself
    groups: list[PaddedGroup] = field(default_factory=list)  # where there is no varlen kernel
    ungroup: Tensor | None = None  # int64 [tokens]: from the groups' tokens, one group after another, to slice order


@dataclass(kw_only=True)
class RowRouting(PackedSeqParams):
    """Routing of a row for all layers; activations are [S(/tp), 1, h] in one of the two orders."""

    num_text: int  # text tokens that this rank holds in separated order
    to_document: Tensor  # int64 [S]: document-order slot i holds the token at this place in separated order
    to_separated: Tensor  # int64 [S]: the inverse permutation
    document: Segments
    text: Segments
    vision: Segments
    dropout_key: str | None = None  # None: dropout is not seeded, because there is none
    rank_major: Tensor | None = None  # int64 [S]: the token (by its place in separated order) at each rank-major slot
    here: slice | None = None  # the slots of this rank, in either order; None: every rank holds all

    def place(self, targets: Tensor, order: str) -> Tensor:
        """Indices [n] of tokens in separated order -> their slots [n] in the gathered row of `order`."""
        if order == DOCUMENT:
            return self.to_separated[targets]
        return targets if self.rank_major is None else _inverse(self.rank_major)[targets]

    def enter(self, ids: Tensor, order: str) -> Tensor:
        """Reorder ids [S] from separated order to `order`, rank-major where ranks share the row: for the embedding."""
        if order == DOCUMENT:
            return ids[self.to_document]
        return ids if self.rank_major is None else ids[self.rank_major]

    def reorder(self, hidden: Tensor, order: str) -> Tensor:
        """Reorder [S(/tp), ...] from the other order to `order`: one gather."""
        if self.here is None:
            return hidden.index_select(0, self.to_document if order == DOCUMENT else self.to_separated)
        whole = tensor_parallel.gather_from_sequence_parallel_region(hidden)  # backward: each rank's share, summed
        if order == DOCUMENT:
            return whole.index_select(0, self.place(self.to_document[self.here], SEPARATED_ORDER))
        rank_major = cast(Tensor, self.rank_major)  # set together with `here`
        return whole.index_select(0, self.place(rank_major[self.here], DOCUMENT))

    def seed_dropout(self, place: str) -> None:
        """Seed dropout of `place` in the model by row and place alone: independent of the parallel layout, of a resume,
        and of activation recomputation."""
        if self.dropout_key is not None:
            digest = hashlib.sha256(f"{self.dropout_key}:{place}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "little"))


def rotary_tables(
    positions: Tensor, head_dim: int, rope: Rope, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rotary tables: positions [tokens] -> cos, sin [tokens, 1, head_dim]; pairs are i and i + head_dim / 2, as in Qwen
    and Llama.

    Third the angles, float32 [tokens, 1, 1, head_dim]; None where cosines are more than those of angles (yarn's factor).
    """
    turned, factor = frequencies(head_dim, rope, positions.device)
    angles = positions.float()[:, None] * turned[None, :]
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    cos, sin = (factor * angles.cos()).to(dtype), (factor * angles.sin()).to(dtype)
    return cos, sin, angles[:, None] if factor == 1 else None


VARLEN_WIDEST = 256  # of a head, in torch's FlashAttention; widths are multiples of 8
VARLEN_SINCE = (8, 0)  # compute capability: Ampere


def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether torch's varlen kernel supports such heads: half precision, on a GPU since Ampere, small head size."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    if head_dim % 8 or head_dim > VARLEN_WIDEST:
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= VARLEN_SINCE


def padded_groups(lengths: list[int], device=None) -> tuple[list[PaddedGroup], Tensor]:
    """Group document lengths in slice order: the longest of a group is at most 1.5 times (+ 8) the shortest; returns
    groups and `ungroup`, with tensors on `device`."""
    sizes = numpy.array(lengths, dtype=numpy.int64)
    starts = numpy.cumsum(sizes) - sizes
    by_length = sorted((i for i in range(len(lengths)) if lengths[i]), key=lambda i: lengths[i])
    chunks: list[list[int]] = []
    for i in by_length:
        if chunks and lengths[i] <= 1.5 * lengths[chunks[-1][0]] + 8:
            chunks[-1].append(i)
        else:
            chunks.append([i])
    groups, placed = [], [numpy.empty(0, dtype=numpy.int64)]
    for members in chunks:
        longest = lengths[members[-1]]
        size, slot = sizes[members][:, None], numpy.arange(longest)[None, :]
        gather = (starts[members][:, None] + numpy.minimum(slot, size - 1)).ravel()  # [documents * longest]
        keep = numpy.flatnonzero(slot < size)
        gathered, kept = (torch.from_numpy(x).to(device) for x in (gather, keep))
        groups.append(PaddedGroup(gathered, kept, len(members), longest))
        placed.append(gather[keep])
    order = numpy.concatenate(placed)
    ungroup = numpy.empty_like(order)
    ungroup[order] = numpy.arange(len(order))
    return groups, torch.from_numpy(ungroup).to(device)


def segments(
    lengths: list[int],
    positions: Tensor,
    head_dim: int,
    rope: Rope,
    dtype: torch.dtype,
    ends: Tensor | None = None,
    with_angles: bool = False,
) -> Segments:
    """Segments of one slice from document lengths (their sum is len(positions)) and positions [tokens].

    ends: int32 [documents + 1] on the device, where documents without tokens are left out; None: made here.
    """
    device = positions.device
    cos, sin, angles = rotary_tables(positions, head_dim, rope, dtype)
    made = Segments(qkv_format="thd", cos=cos, sin=sin, angles=angles if with_angles else None)
    if has_varlen_kernel(device, dtype, head_dim):
        if ends is None:
            ends = torch.tensor([0, *(n for n in lengths if n)]).cumsum(0, dtype=torch.int32).to(device)
        made.cu_seqlens_q = made.cu_seqlens_kv = ends
        made.max_seqlen_q = made.max_seqlen_kv = max(lengths, default=0)
    else:
        made.groups, made.ungroup = padded_groups(lengths, device)
    return made


def _inverse(permutation: Tensor) -> Tensor:
    """Inverse of a permutation, int64 [n]."""
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(permutation), device=permutation.device)
    return inverse


def rank_major_order(num_text: int, num_vision: int, ranks: int, device=None) -> Tensor:
    """int64 [num_text + num_vision]: text share of rank 0, vision share of rank 0, text share of rank 1, ..."""
    text = torch.arange(num_text, device=device).view(ranks, -1)
    vision = torch.arange(num_text, num_text + num_vision, device=device).view(ranks, -1)
    return torch.cat((text, vision), dim=1).flatten()


def route(
    positions: Tensor,
    to_document: Tensor,
    lengths: dict[str, list[int]],
    head_dim: int,
    rope: Rope,
    dtype: torch.dtype,
    dropout_key: str | None = None,
    sequence_parallel: bool = False,
    ends: dict[str, Tensor] | None = None,
    with_angles: bool = False,
) -> RowRouting:
    """Routing of one row from the small integer tensors of its loader.

    `positions` [S]: place of each token in its document, in separated order. `to_document` [S]: see `RowRouting`.
    `lengths`: tokens per document under "document", "text" and "vision". `dtype`: that of the activations.
    `dropout_key`: of the run and the row, when something is left out in training. `sequence_parallel`: the row is shared
    by the tensor-parallel ranks, whose number must divide both modalities' tokens. `ends`: see `segments`, by the names of
    `lengths`. `with_angles`: for transformer-engine's rotation.
    """
    num_text, ends = sum(lengths["text"]), ends or {}
    slices = {"document": positions[to_document], "text": positions[:num_text], "vision": positions[num_text:]}
    made = RowRouting(
        qkv_format="thd",
        num_text=num_text,
        to_document=to_document,
        to_separated=_inverse(to_document),
        **{
            name: segments(lengths[name], of_slice, head_dim, rope, dtype, ends.get(name), with_angles)
            for name, of_slice in slices.items()
        },
        dropout_key=dropout_key,
    )
    if sequence_parallel:
        rank, ranks = (
            f()
            for f in (
                parallel_state.get_tensor_model_parallel_rank,
                parallel_state.get_tensor_model_parallel_world_size,
            )
        )
        share = len(positions) // ranks
        made.rank_major = rank_major_order(num_text, len(positions) - num_text, ranks, positions.device)
        made.here = slice(rank * share, (rank + 1) * share)
        made.num_text = num_text // ranks
        made.dropout_key = dropout_key and f"{dropout_key}:{rank}"  # its tokens are other ones
    return made
