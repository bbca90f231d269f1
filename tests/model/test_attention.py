"""Which attention kernel serves which device and precision, and that they compute the same."""

from __future__ import annotations

import pytest
import torch

from model import attention, routing
from model.attention import attend, fused_attention, short_attention
from model.hf.rope_uni_x import Rope
from model.routing import has_varlen_kernel, segments
from tests.model.tiny_hf import document
from tests.model.tiny_training import row_of, training_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
LENGTHS = [5, 300, 17, 16]  # one is longer than what is written out


@pytest.mark.parametrize(
    "device, dtype, head_dim, varlen",
    [
        (CUDA, torch.bfloat16, 128, True),
        (CUDA, torch.float16, 64, True),
        (CUDA, torch.bfloat16, 256, True),
        (CUDA, torch.float32, 128, False),  # it takes half precision alone
        (CUDA, torch.bfloat16, 264, False),
        (CUDA, torch.bfloat16, 12, False),
        (CPU, torch.bfloat16, 128, False),
        (CPU, torch.float32, 128, False),
    ],
)
def test_the_varlen_kernel_is_for_half_precision_on_gpus(device, dtype, head_dim, varlen):
    assert has_varlen_kernel(device, dtype, head_dim) == varlen


def test_gpus_before_ampere_have_no_varlen_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, varlen in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert has_varlen_kernel(CUDA, torch.bfloat16, 128) == varlen


def random_heads(tokens: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, heads, 8, generator=draw) for heads in (4, 2, 2)]


def by_document(query, key, value, lengths) -> torch.Tensor:
    """One document after another, written out."""
    parts = zip(*(x.split(lengths) for x in (query, key, value)))
    return torch.cat([short_attention(*(x.transpose(0, 1)[None] for x in part))[0].transpose(0, 1) for part in parts])


def test_padded_documents_attend_as_each_by_itself():
    tokens = sum(LENGTHS)
    heads = random_heads(tokens)
    layout = segments(LENGTHS, torch.zeros(tokens, dtype=torch.int64), 8, Rope(1e4), torch.float32)
    torch.testing.assert_close(attend(*heads, layout), by_document(*heads, LENGTHS), atol=2e-6, rtol=1e-5)


def test_shared_heads_expanded_are_the_same_heads():
    query, key, value = (x.transpose(0, 1)[None] for x in random_heads(40))
    expected = fused_attention(query, key, value, expand=False)
    torch.testing.assert_close(fused_attention(query, key, value, expand=True), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("knows_shared_heads", [True, False], ids=["torch 2.13", "torch 2.11"])
def test_varlen_attention_is_called_as_this_torch_has_it(monkeypatch, knows_shared_heads):
    """The kernel needs a GPU: what takes its place computes the documents one by one, and has its parameters."""

    def compute(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size):
        assert window_size == (-1, 0) and max_q == max_k == max(LENGTHS) and torch.equal(cu_seq_q, cu_seq_k)
        return by_document(query, key, value, cu_seq_q.diff().tolist())

    def of_2_13(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        *,
        return_aux=None,
        scale=None,
        window_size=(-1, -1),
        enable_gqa=False,
    ):
        assert enable_gqa
        return compute(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size)

    def of_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        return compute(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_2_13 if knows_shared_heads else of_2_11)
    monkeypatch.setattr(routing, "has_varlen_kernel", lambda *_: True)
    attention._grouped_heads_switch.cache_clear()
    heads, tokens = random_heads(sum(LENGTHS)), sum(LENGTHS)
    layout = segments(LENGTHS, torch.zeros(tokens, dtype=torch.int64), 8, Rope(1e4), torch.float32)
    try:
        torch.testing.assert_close(attend(*heads, layout), by_document(*heads, LENGTHS), atol=2e-6, rtol=1e-5)
    finally:
        attention._grouped_heads_switch.cache_clear()


def test_a_packed_row_is_the_row_with_the_ends_of_its_documents(monkeypatch):
    """As a GPU gets it, in one copy."""
    config = training_config()
    row = row_of([document([5]), document([3, 9], 1), document([7, 2])], config, tokens=64)
    packed = row.packed()
    assert packed.dtype == torch.int64 and packed.dim() == 1
    there = row.unpacked(packed)
    for name in ("ids", "labels", "targets", "positions", "to_document"):
        assert torch.equal(getattr(there, name), getattr(row, name))
    monkeypatch.setattr(routing, "has_varlen_kernel", lambda *_: True)
    alone, given = (
        routing.route(each.positions, each.to_document, each.lengths, 8, Rope(1e4), torch.float32, ends=each.ends)
        for each in (row, there)
    )
    for name in ("document", "text", "vision"):
        ends = getattr(given, name).cu_seqlens_q
        assert ends.dtype == torch.int32 and torch.equal(ends, getattr(alone, name).cu_seqlens_q)
        assert ends.diff().tolist() == [n for n in row.lengths[name] if n]
