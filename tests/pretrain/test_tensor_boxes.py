"""Whatever ranks hold a tensor, its pieces lie in the whole where their elements belong, each element once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tensor_shards import shard
from pretrain.tensor_boxes import TensorBox, boxes_of, copied, owned

MATRICES = ["embedding.word_embeddings.weight", "a.linear_fc1.weight", "a.linear_fc2.weight", "a.linear_proj.weight"]
VECTORS = ["a.linear_qkv.bias", "a.input_layernorm.weight"]


def box_of(box: TensorBox, whole: torch.Tensor) -> torch.Tensor:
    for dim, (start, length) in enumerate(zip(box.offsets, box.tensor.shape, strict=True)):
        whole = whole.narrow(dim, start, length)
    return whole


@st.composite
def held_tensors(draw):
    """(name, whole tensor of distinct values, tensor-parallel ranks, cuts of a rank's share over data-parallel ranks)."""
    ranks, name = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from(MATRICES + VECTORS))
    rows, columns = 2 * ranks * draw(st.integers(1, 3)), ranks * draw(st.integers(1, 4))
    shape = (rows,) if name in VECTORS else (rows, columns)
    whole = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    share = shard(name, whole, 0, ranks).numel()
    cuts = draw(st.lists(st.integers(0, share), max_size=3))
    return name, whole, ranks, [0, *sorted(cuts), share]


@settings(max_examples=200, deadline=None)
@given(held_tensors())
def test_pieces_of_all_ranks_make_the_whole(held):
    name, whole, ranks, cuts = held
    for flat in (False, True):
        made = torch.zeros_like(whole)
        for rank in range(ranks if shard(name, whole, 0, ranks).shape != whole.shape else 1):
            share = shard(name, whole, rank, ranks)
            parts = [(None, share)]
            if flat:
                parts = [(start, share.flatten()[start:end]) for start, end in zip(cuts, cuts[1:])]
            for start, tensor in parts:
                for box in boxes_of("key", name, share.shape, tensor, rank, ranks, start):
                    assert box.shape == whole.shape and box.key == "key" and box.tensor.numel()
                    box_of(box, made).add_(box.tensor)
        assert torch.equal(made, whole)


def test_whole_rows_are_one_box():
    """Each box has a place of its own in the metadata, which every process reads."""
    name, shape = "a.linear_proj.weight", (4, 6)
    for start, elements, boxes in ((0, 24, 1), (6, 12, 1), (6, 13, 2), (5, 13, 2), (5, 14, 3), (7, 3, 1)):
        assert len(list(boxes_of("key", name, shape, torch.zeros(elements), 0, 1, start))) == boxes, (start, elements)


@settings(max_examples=50, deadline=None)
@given(held_tensors())
def test_what_is_read_into_the_pieces_is_in_the_tensor(held):
    name, whole, ranks, cuts = held
    for rank in range(ranks):
        share = shard(name, whole, rank, ranks)
        for start, end in zip(cuts, cuts[1:]):
            held_here = torch.zeros(end - start)
            for box in boxes_of("key", name, share.shape, held_here, rank, ranks, start):
                box.tensor.copy_(box_of(box, whole))
            assert torch.equal(held_here, share.flatten()[start:end])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 5))
def test_each_piece_is_written_by_one_rank_and_ranks_write_alike(sizes, ranks):
    boxes = [TensorBox(str(number), (size,), (0,), torch.zeros(size)) for number, size in enumerate(sizes)]
    shares = [owned(boxes, rank, ranks) for rank in range(ranks)]
    assert sorted(box.key for share in shares for box in share) == sorted(box.key for box in boxes)
    totals = [sum(box.tensor.numel() for box in share) for share in shares]
    assert max(totals) - min(totals) <= max(sizes)


def test_a_copy_does_not_change_with_the_tensor():
    for part in (slice(None), slice(1, None)):  # of which the first is contiguous as it is
        tensor = torch.zeros(4, 4)
        copy = copied([TensorBox("key", (4, 4), (0, 0), tensor[:, part])])[0]
        tensor.fill_(1.0)
        assert copy.tensor.sum() == 0 and copy.tensor.is_contiguous()
