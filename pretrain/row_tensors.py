"""Tensors of a training step from a planned row: ids in separated order, labels, positions, permutations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from model.vocabulary import IGNORED, Vocabulary
from pretrain.rows import RowSize

TENSORS = ("ids", "labels", "targets", "positions", "to_document")
PAD_STRETCH = 64  # padding is split into documents of this length, so that its attention is cheap


@dataclass
class Row:
    """One row of S tokens: all small integer tensors that any pipeline stage needs.

    `ids`, `labels` and `positions` are [S] in separated order (text, then vision); `targets` [T] says which of them have
    a label. `to_document` [S] is the permutation that brings them into document order. `lengths` counts tokens per
    document: "document", "text" and "vision".
    """

    index: int
    ids: Tensor
    labels: Tensor
    targets: Tensor
    positions: Tensor
    to_document: Tensor
    lengths: dict[str, list[int]]
    padding: int
    ends: dict[str, Tensor] = field(default_factory=dict)  # on a GPU: int32 [documents + 1] for each of `lengths`

    def to(self, device) -> Row:
        """The same row with its tensors on `device`; lengths stay on the host.

        To a GPU all of them go in one copy out of pinned memory, with the ends of the documents, so that nothing waits.
        """
        if torch.device(device).type != "cuda":
            moved = {name: getattr(self, name).to(device) for name in TENSORS}
            return Row(index=self.index, lengths=self.lengths, padding=self.padding, **moved)
        packed = self.packed()
        if torch.cuda.is_available():
            packed = packed.pin_memory()
        return self.unpacked(packed.to(device, non_blocking=True))

    def packed(self) -> Tensor:
        """Serialize to int64 [n]: the tensors, then document ends of each of `lengths`, without empty ones."""
        ends = [torch.tensor([0, *(n for n in lengths if n)]).cumsum(0) for lengths in self.lengths.values()]
        return torch.cat([*(getattr(self, name) for name in TENSORS), *ends])

    def unpacked(self, packed: Tensor) -> Row:
        """This row with the tensors of a `packed` tensor, on its device."""
        sizes = [len(getattr(self, name)) for name in TENSORS]
        sizes += [1 + sum(1 for n in lengths if n) for lengths in self.lengths.values()]
        parts = packed.split(sizes)
        ends = {name: each.int() for name, each in zip(self.lengths, parts[len(TENSORS) :], strict=True)}
        return Row(index=self.index, lengths=self.lengths, padding=self.padding, ends=ends, **dict(zip(TENSORS, parts)))

    def document_of_targets(self) -> Tensor:
        """Document number of each target token, int64 [T]."""
        in_document_order = torch.repeat_interleave(torch.tensor(self.lengths["document"]))
        of_token = torch.empty_like(in_document_order)
        of_token[self.to_document] = in_document_order
        return of_token[self.targets]


def assemble(
    index: int, documents: Sequence[tuple[numpy.ndarray, numpy.ndarray]], vocabulary: Vocabulary, size: RowSize
) -> Row:
    """Build a row, padded to S tokens, from (ids, labels) of each document in row order.

    Padding follows the documents, in documents of its own, so nothing attends to it; its labels are ignored.
    """
    counts = [len(document[0]) for document in documents]
    used = sum(counts)
    if used > size.tokens:
        raise ValueError(
            f"row {index} was planned with {used - size.tokens} tokens too many: the length index is wrong"
        )
    ids, labels = numpy.empty(size.tokens, numpy.int64), numpy.full(size.tokens, IGNORED)
    numpy.concatenate([document[0] for document in documents], out=ids[:used])
    numpy.concatenate([document[1] for document in documents], out=labels[:used])
    is_visual = numpy.empty(size.tokens, bool)
    is_visual[:used] = vocabulary.is_visual(ids[:used])
    visual = int(numpy.count_nonzero(is_visual[:used]))
    text_slots, vision_slots = size.padded(used - visual, visual)
    at = used
    for missing, pad, is_vision in (
        (text_slots - (used - visual), vocabulary.eos_id, False),
        (vision_slots - visual, vocabulary.image_token_offset, True),
    ):
        if missing < 0:
            raise ValueError(f"row {index} was planned with {-missing} tokens too many: the length index is wrong")
        ids[at : at + missing], is_visual[at : at + missing] = pad, is_vision
        counts += [min(PAD_STRETCH, missing - begun) for begun in range(0, missing, PAD_STRETCH)]
        at += missing
    return _separate(index, ids, labels, is_visual, counts, size.tokens - used)


def _separate(
    index: int, ids: numpy.ndarray, labels: numpy.ndarray, is_visual: numpy.ndarray, counts: list[int], padding: int
) -> Row:
    """Row of arrays [S] in document order; `counts` are the tokens of each document."""
    visual = numpy.flatnonzero(is_visual)
    separated = numpy.concatenate([numpy.flatnonzero(~is_visual), visual])
    to_document = numpy.empty_like(separated)
    to_document[separated] = numpy.arange(len(separated))
    ends = numpy.cumsum(counts)
    positions = separated - numpy.repeat(ends - counts, counts)[separated]
    labels = labels[separated]
    vision = numpy.diff(numpy.searchsorted(visual, ends), prepend=0)
    return Row(
        index=index,
        ids=torch.from_numpy(ids[separated]),
        labels=torch.from_numpy(labels),
        targets=torch.from_numpy(numpy.flatnonzero(labels != IGNORED)),
        positions=torch.from_numpy(positions),
        to_document=torch.from_numpy(to_document),
        lengths={"document": counts, "text": (counts - vision).tolist(), "vision": vision.tolist()},
        padding=padding,
    )
