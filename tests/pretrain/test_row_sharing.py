"""Rows that are handed over are the rows that were read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.process_ranks import ProcessRanks
from pretrain.row_sharing import TENSORS, RowSharing, pack, unpack
from pretrain.row_tensors import Row


@st.composite
def rows(draw) -> Row:
    tokens, documents = draw(st.integers(1, 12)), draw(st.integers(1, 4))

    def integers(count: int) -> list[int]:
        return draw(st.lists(st.integers(-100, 2**40), min_size=count, max_size=count))

    targets = draw(st.integers(0, tokens))  # a row may have none
    sizes = {"ids": tokens, "labels": tokens, "targets": targets, "positions": tokens, "to_document": tokens}
    return Row(
        index=draw(st.integers(0, 2**40)),
        padding=draw(st.integers(0, 9)),
        lengths={name: integers(documents) for name in ("document", "text", "vision")},
        **{name: torch.tensor(integers(count), dtype=torch.int64) for name, count in sizes.items()},
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(rows(), max_size=4))
def test_unpacked_rows_are_equal(read):
    found = unpack(pack(read))
    assert len(found) == len(read)
    for ours, theirs in zip(read, found):
        assert (ours.index, ours.padding, ours.lengths) == (theirs.index, theirs.padding, theirs.lengths)
        assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in TENSORS)


def test_a_rank_alone_keeps_its_rows():
    sharing = RowSharing(ProcessRanks())
    row = unpack(pack([]))
    assert sharing.reads and sharing.share(row) == row


@pytest.mark.parametrize("name", TENSORS)
def test_every_tensor_of_a_row_is_shared(name):
    assert name in Row.__dataclass_fields__
    tensors = {field for field, spec in Row.__dataclass_fields__.items() if spec.type == "Tensor"}
    assert tensors == set(TENSORS)
