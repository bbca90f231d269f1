"""Attention of Uni-X: masks, and transformers' attention functions. Imports torch and transformers only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .routing_uni_x import Keys


def attention_masks(
    cache_position: Tensor,
    keys_seen: int,
    attention_mask: Tensor | None,
    new: Keys | None,
    keys: Keys | None,
    within: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Attention masks of shared and of separated layers, True where a query sees a key: [b or 1, 1, s, total].

    None stands for plain causal attention, which needs no mask. `cache_position` [s]: index of each query in the
    sequence; `attention_mask` [b, total or less]: 0 for padding; `new` and `keys`: modality and document of queries
    [b, s] and of keys [b, total]; without `within` no layer needs the second mask. Every token sees at least itself, so
    that padding has no empty row, whose softmax is not a number.
    """
    tracing = torch.compiler.is_compiling()  # tracing: no value may decide what is computed
    queries, joint = len(cache_position), None
    padded = attention_mask is not None and (tracing or not bool(attention_mask.all()))
    several = keys is not None and keys.documents is not None
    plain = queries in (1, keys_seen) and not tracing and int(cache_position[-1]) + 1 == keys_seen
    plain = plain and not padded and not several
    if plain and queries == 1:  # a decoding step
        same = (
            new.modality[:, None, :, None] == keys.modality[:, None, None, :] if within and keys is not None else None
        )
        return None, None if same is None or bool(same.all()) else same
    rows, columns = cache_position[:, None], torch.arange(keys_seen, device=cache_position.device)
    if not plain:
        joint = (columns <= rows)[None, None]
        if attention_mask is not None:
            unwritten = max(0, keys_seen - attention_mask.shape[1])  # slots of a static cache
            real = nn.functional.pad(attention_mask[:, :keys_seen].bool(), (0, unwritten))
            joint = joint & real[:, None, None, :]
        if several:
            joint = joint & (new.documents[:, None, :, None] == keys.documents[:, None, None, :])
        joint = joint | (columns == rows)
    if not within or keys is None or (not tracing and bool(keys.modality.amin() == keys.modality.amax())):
        return joint, joint
    same = new.modality[:, None, :, None] == keys.modality[:, None, None, :]
    return joint, same & ((columns <= rows) if joint is None else joint)


def additive(mask: Tensor | None, queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask for attention scores, [b or 1, 1, s, total]; None is causal."""
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[None, None]
    return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)


def eager_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Eager attention -> output [b, s, heads, head_dim] and weights [b, heads, s, total]."""
    k, v = (repeat_kv(x, module.num_key_value_groups) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scaling + additive(mask, q.shape[2], k.shape[2], q.dtype, q.device)
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2), weights


def attend(
    name: str, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Attention by transformers' functions: queries [b, heads, s, head_dim], keys and values [b, kv_heads, total,
    head_dim] -> [b, s, heads * head_dim].

    `name` is transformers' `attn_implementation`; `mask` is [b or 1, 1, s, total], True where a query sees a key, or
    None for causal attention. Only "eager" has the second value, weights [b, heads, s, total].
    """
    scale = module.head_dim**-0.5
    mask = mask if mask is None else mask.to(q.device)
    if name == "eager":
        attended, weights = eager_attention(module, q, k, v, mask, scale)
        return attended.flatten(2), weights
    if name == "flex_attention" and q.device.type == "cpu":
        raise ValueError(
            "attn_implementation 'flex_attention': torch 2.13.0 overwrites memory on a CPU when it is given a mask of numbers, "
            "and separated layers need one: use 'sdpa' or 'eager'"
        )
    if name != "sdpa":  # flex, or what somebody registered: their masks are numbers, as transformers' own eager ones
        # one for each row: flex reads it by the row's number, beyond its end where it has one for all
        mask = additive(mask, q.shape[2], k.shape[2], q.dtype, q.device).expand(len(q), -1, -1, -1)
        attended = ALL_ATTENTION_FUNCTIONS[name](module, q, k, v, mask, dropout=0.0, scaling=scale)[0]
        return attended.flatten(2), None
    if q.shape[2] > 1:
        return sdpa_attention_forward(module, q, k, v, mask, scaling=scale)[0].flatten(2), None
    # While decoding, the heads that share a key become queries of one head: no key is copied for each of them.
    q = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).flatten(1)[:, None], None
