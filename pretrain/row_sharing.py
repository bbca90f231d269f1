"""Row broadcast within a tensor-parallel group: its first rank reads rows and sends them to the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.process_ranks import ProcessRanks
from pretrain.row_tensors import TENSORS, Row

LENGTHS = ("document", "text", "vision")


def pack(rows: Sequence[Row]) -> Tensor:
    """Serialize rows to int64 [n] for `unpack`: for each row its sizes, its tensors, its lengths."""
    parts = [torch.empty(0, dtype=torch.int64)]
    for row in rows:
        tensors = [getattr(row, name) for name in TENSORS]
        lengths = [torch.tensor(row.lengths[name]) for name in LENGTHS]
        parts.append(torch.tensor([row.index, row.padding, *(len(part) for part in (*tensors, *lengths))]))
        parts += [*tensors, *lengths]
    return torch.cat(parts).to(torch.int64)


def unpack(packed: Tensor) -> list[Row]:
    """Deserialize rows of `pack`."""
    rows, at = [], 0
    count = len(TENSORS) + len(LENGTHS)
    while at < len(packed):
        index, padding, *sizes = packed[at : at + 2 + count].tolist()
        parts = packed[at + 2 + count :].split([*sizes, len(packed) - at - 2 - count - sum(sizes)])
        lengths = {name: part.tolist() for name, part in zip(LENGTHS, parts[len(TENSORS) :])}
        rows.append(Row(index=index, padding=padding, lengths=lengths, **dict(zip(TENSORS, parts))))
        at += 2 + count + sum(sizes)
    return rows


class RowSharing:
    """Broadcasts rows within each tensor-parallel group. All processes of a run construct it together."""

    def __init__(self, place: ProcessRanks):
        self.reads, self.group = place.tensor_rank == 0, None
        if place.tensor_ranks > 1:  # megatron-core numbers the ranks of a tensor-parallel group one after the other
            self.group, _ = torch.distributed.new_subgroups(place.tensor_ranks, backend="gloo")

    def share(self, rows: Sequence[Row] | None) -> list[Row]:
        """Rows of the group's first rank, on every rank of it; the other ranks pass None."""
        if self.group is None:
            return list(rows or ())
        source = torch.distributed.get_global_rank(self.group, 0)
        packed = pack(rows or ()) if self.reads else None
        size = torch.tensor([0 if packed is None else len(packed)])
        torch.distributed.broadcast(size, source, group=self.group)
        if packed is None:
            packed = torch.empty(int(size), dtype=torch.int64)
        torch.distributed.broadcast(packed, source, group=self.group)
        return unpack(packed)
