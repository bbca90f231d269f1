"""Per-document causal attention on [tokens, heads, head_dim] slices, the same for shared and separated layers."""

from __future__ import annotations

import functools
import inspect
from typing import Any, cast

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from model.fused import rotate
from model.routing import Segments

WRITTEN_OUT_UP_TO = (
    256  # tokens; on a CPU two matrix products and a softmax take a third of the time of its fused kernel
)


def short_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention without a fused kernel: query [n, heads, t, d], key and value [n, kv_heads, t, d] -> [n, heads,
    t, d]."""
    n, heads, t, d = query.shape
    pairs = n * key.shape[1]  # the query heads that share a key head stand together: one product does them all
    future = torch.full((t, t), -torch.inf, dtype=query.dtype, device=query.device).triu_(1)
    future = future.expand(heads // key.shape[1], t, t).reshape(1, -1, t)
    query, key, value = query.reshape(pairs, -1, d), key.reshape(pairs, t, d), value.reshape(pairs, t, d)
    scores = torch.baddbmm(future, query, key.transpose(1, 2), alpha=d**-0.5)
    return torch.bmm(torch.softmax(scores, dim=-1), value).view(n, heads, t, d)


def padded_attention(query: Tensor, key: Tensor, value: Tensor, layout: Segments) -> Tensor:
    """Attention in padded batches, one for each group of similar lengths; the slots past a document's end are causally
    invisible.

    query [tokens, heads, d], key and value [tokens, kv_heads, d] -> [tokens, heads, d].
    """
    outputs = []
    for group in layout.groups:
        q, k, v = (
            x.index_select(0, group.gather).view(group.documents, group.length, x.shape[1], x.shape[2]).transpose(1, 2)
            for x in (query, key, value)
        )
        short = group.length <= WRITTEN_OUT_UP_TO
        out = short_attention(q, k, v) if short else fused_attention(q, k, v, expand=q.is_cuda)
        outputs.append(out.transpose(1, 2).reshape(-1, out.shape[1], out.shape[3]).index_select(0, group.keep))
    if not outputs:
        return query
    return torch.cat(outputs).index_select(0, cast(Tensor, layout.ungroup))


def fused_attention(query: Tensor, key: Tensor, value: Tensor, expand: bool) -> Tensor:
    """torch's fused causal attention, shapes as in `short_attention`.

    expand: give every query head keys and values of its own; on GPUs the kernel for float32 knows no shared ones, and
    torch would make all scores instead.
    """
    if expand:
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=not expand)


@functools.cache
def _grouped_heads_switch() -> dict[str, Any]:
    """`enable_gqa` where torch has it: 2.13 requires it for grouped-query heads; 2.11 does not know it and has the same
    kernel."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, layout: Segments) -> Tensor:
    """Attention by torch's varlen kernel (see `model.routing.has_varlen_kernel`), without padding."""
    from torch.nn.attention.varlen import varlen_attn

    longest, ends = layout.max_seqlen_q, layout.cu_seqlens_q
    switch = _grouped_heads_switch()
    out = varlen_attn(query, key, value, ends, ends, longest, longest, window_size=(-1, 0), **switch)
    return cast(Tensor, out)  # a tuple only if requested


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Segments) -> Tensor:
    """Attention by the kernel that `layout` was made for: query [tokens, heads, d] and its keys and values -> [tokens,
    heads, d]."""
    return (padded_attention if layout.cu_seqlens_q is None else varlen_attention)(query, key, value, layout)


class DocumentAttention(MegatronModule):
    """The `core_attention` of every layer: rotary embedding, then causal attention inside each document.

    Rotary embedding is applied here and not by megatron-core, because its positions are those of document order in
    every layer, also where a slice holds one modality only and positions have gaps.
    """

    def __init__(self, config, layer_number, attn_mask_type=None, attention_type="self", **_):
        super().__init__(config=config)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask=None,
        attn_mask_type=None,
        attention_bias=None,
        packed_seq_params: Segments | None = None,
    ) -> Tensor:
        """query [t, heads, d], key and value [t, kv_heads, d] -> [t, heads, d]; t is the whole slice."""
        layout = cast(Segments, packed_seq_params)
        query = rotate(query, layout.cos, layout.sin)
        key = rotate(key, layout.cos, layout.sin)
        if value.is_cuda:  # copies a tenth of linear_qkv's output, so that the rest need not be kept
            value = value.contiguous()
        return attend(query, key, value, layout)
