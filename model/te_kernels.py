"""transformer-engine's kernels in place of torch's: fused norm and linear, attention, rotary embedding, and FP8.

Nothing here has run on a GPU. Import it only where transformer-engine loads (`model.kernels.check_loads`).
"""

from __future__ import annotations

from typing import cast

from megatron.core.extensions.transformer_engine import (
    TEColumnParallelLinear,
    TEDotProductAttention,
    TELayerNormColumnParallelLinear,
    TENorm,
    TERowParallelLinear,
    fused_apply_rotary_pos_emb,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from model.fused import rotate
from model.kernels import Kernels
from model.layer_specs import SwiGLU
from model.routing import Segments


class FusedDocumentAttention(MegatronModule):
    """`DocumentAttention` with transformer-engine: fused rotary embedding, attention by cuDNN or FlashAttention, its
    choice."""

    def __init__(self, config, layer_number, attn_mask_type=AttnMaskType.causal, attention_type="self", **named):
        super().__init__(config=config)
        self.kernel = TEDotProductAttention(config, layer_number, attn_mask_type, attention_type, **named)

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
        if not layout.max_seqlen_q:  # no document: nothing to attend to, and no kernel takes it
            return query
        query, key = (turned(each, layout) for each in (query, key))
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=layout.cu_seqlens_q,
            cu_seqlens_kv=layout.cu_seqlens_kv,
            max_seqlen_q=layout.max_seqlen_q,
            max_seqlen_kv=layout.max_seqlen_kv,
        )
        out = self.kernel(query, key, value.contiguous(), None, AttnMaskType.causal, packed_seq_params=packed)
        return out.view(len(query), -1, query.shape[2])


def turned(x: Tensor, layout: Segments) -> Tensor:
    """Rotary embedding of [t, heads, d] by the tokens' angles; by torch where frequencies are scaled (yarn)."""
    if layout.angles is None:
        return rotate(x, layout.cos, layout.sin)
    return fused_apply_rotary_pos_emb(x.unsqueeze(1), layout.angles).squeeze(1)


def transformer_engine_kernels() -> Kernels:
    """transformer-engine's classes; the activation function is megatron-core's compiled one with either kernels."""
    return Kernels(
        TENorm,
        TEColumnParallelLinear,
        TERowParallelLinear,
        FusedDocumentAttention,
        SwiGLU,
        TELayerNormColumnParallelLinear,
    )
