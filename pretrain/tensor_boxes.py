"""Tensor boxes: which part of each stored tensor a rank holds; the layout-independent form of a checkpoint.

A tensor-parallel rank holds ranges of rows or columns; the distributed optimizer holds a flat range of these. Either way it
is a few boxes of the full tensor, and each box can be written and read by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from model.tensor_shards import runs, whole_shape


@dataclass(frozen=True)
class TensorBox:
    """A box of the tensor stored under `key` with full `shape`; it begins at `offsets` and holds `tensor`."""

    key: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: Tensor


def boxes_of(
    key: str, name: str, shape: Sequence[int], tensor: Tensor, rank: int, ranks: int, start: int | None = None
) -> Iterator[TensorBox]:
    """Boxes of tensor-parallel rank `rank` of `ranks` for weight `name`, or for optimizer state of that weight.

    shape: of the rank's share. tensor: of that shape; or, with `start`, 1-D, the elements from `start` on of the share
    read row by row. The pieces are views of `tensor`, so what is read into them is there.
    """
    whole = whole_shape(name, shape, ranks)
    for first, last, offsets in runs(name, shape, rank, ranks):
        if start is None:
            yield TensorBox(key, whole, offsets, tensor[first:last])
            continue
        row = math.prod(shape[1:])
        low, high = max(start, first * row), min(start + tensor.numel(), last * row)
        for begin, end in _row_boxes(low, high, row):
            box = tensor[begin - start : end - start]
            line, column = divmod(begin, row)
            at = (offsets[0] + line - first, *offsets[1:])
            if len(shape) > 1:
                box = box.view(-1, row) if (end - begin) % row == 0 and not column else box.view(1, -1)
                at = (at[0], at[1] + column)
            yield TensorBox(key, whole, at, box)


def _row_boxes(low: int, high: int, row: int) -> Iterator[tuple[int, int]]:
    """Split the flat range low:high of a matrix with `row` columns into a part of a row, whole rows, and a part of a
    row."""
    if row == 1:  # a vector is one box
        if low < high:
            yield low, high
        return
    head = min(-(-low // row) * row, high)
    tail = max(high // row * row, head)
    for begin, end in ((low, head), (head, tail), (tail, high)):
        if begin < end:
            yield begin, end


def owned(boxes: Sequence[TensorBox], rank: int, ranks: int) -> list[TensorBox]:
    """Of boxes replicated on `ranks` data-parallel ranks, those that rank `rank` writes: about equal bytes for each."""
    written = [0] * ranks
    mine = []
    for number in sorted(range(len(boxes)), key=lambda n: (-_bytes(boxes[n]), n)):
        least = written.index(min(written))
        written[least] += _bytes(boxes[number])
        if least == rank:
            mine.append(boxes[number])
    return mine


def _bytes(piece: TensorBox) -> int:
    return piece.tensor.numel() * piece.tensor.element_size()


def copied(boxes: Sequence[TensorBox]) -> list[TensorBox]:
    """Boxes with copies of their tensors on the CPU: an asynchronous save writes them while training goes on."""
    return [replace(piece, tensor=piece.tensor.detach().to("cpu", copy=True).contiguous()) for piece in boxes]
