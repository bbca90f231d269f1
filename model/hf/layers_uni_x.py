"""Modules of Uni-X layers, and rotary embedding. Imports torch only.

The names of the modules are those of Qwen2 and Qwen3, so that a plain Qwen class reads the text path of a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration_uni_x import UniXConfig


class UniXRMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32 as Qwen does."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.shape
        if x.dtype == self.weight.dtype == torch.float32:
            return torch.rms_norm(x, size, self.weight, self.eps)
        return self.weight * nn.functional.rms_norm(x.float(), size, eps=self.eps).to(
            x.dtype
        )  # rounded before its weight


class UniXAttention(nn.Module):
    """Projections of one branch. Attention itself mixes branches and is computed outside."""

    is_causal = True  # read by sdpa_attention_forward, as are the next two attributes

    def __init__(self, config: UniXConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        query_size, key_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.q_norm = UniXRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = UniXRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, hidden] -> queries [n, heads, head_dim], keys and values [n, kv_heads, head_dim], before RoPE."""
        tokens, head_dim = x.shape[0], self.head_dim
        q, k, v = (proj(x).view(tokens, -1, head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.q_norm(q), self.k_norm(k), v


class UniXMLP(nn.Module):
    """SwiGLU MLP: [n, hidden] -> [n, hidden]."""

    def __init__(self, config: UniXConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class UniXBranch(nn.Module):
    """The weights of one layer for one modality, or for both in a shared layer."""

    def __init__(self, config: UniXConfig) -> None:
        super().__init__()
        self.input_layernorm = UniXRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = UniXAttention(config)
        self.post_attention_layernorm = UniXRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = UniXMLP(config)

    def forward(self, x: Tensor, attended: Tensor | None = None, feed_forward: bool = True):
        """First call: norm and projections before attention; second call, with its result: output projection and MLP.

        Input [n, hidden] alone -> queries, keys and values as `UniXAttention.project` gives them for the normed input.
        With `attended` [n, heads * head_dim] -> the layer's output [n, hidden]; without `feed_forward` that of attention
        with its normed form, where the MLP is another module's. Both go through the module's call, so that hooks of
        accelerate and others see to weights and devices.
        """
        if attended is None:
            return self.self_attn.project(self.input_layernorm(x))
        x = x.to(attended.device) + self.self_attn.o_proj(attended)
        normed = self.post_attention_layernorm(x)
        return x + self.mlp(normed) if feed_forward else (x, normed)


class UniXVisionMLP(nn.Module):
    """Vision weights of a layer whose MLP alone is separate."""

    def __init__(self, config: UniXConfig) -> None:
        super().__init__()
        self.mlp = UniXMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """[n, hidden] -> [n, hidden]."""
        return self.mlp(x)


VISION_WEIGHTS = {"mlp": UniXVisionMLP, "all": UniXBranch}


def rotary_angles(position_ids: Tensor, turned: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary position embedding, each [b, 1, s, head_dim], the sine negative in the first half.

    `turned` and `factor` are what `frequencies` gives, in float32.
    """
    angles = position_ids[:, None, :, None].float() * turned
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos, sin = factor * cos, factor * sin
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary position embedding to [b, heads, s, head_dim]; the halves of a head are the rotated pairs."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin
