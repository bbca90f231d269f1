"""First weights that depend on the seed and on the weight's name alone: one model, however it is cut over ranks."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from model.config import ModelConfig
from model.tensor_shards import VOCABULARY, shard

BEFORE_THE_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")


def first_weight(config: ModelConfig, name: str, seed: int) -> Tensor:
    """The whole weight of this training name, float32: norms 1, biases 0, matrices normal.

    Matrices that write into the residual stream are narrower by sqrt(2 * layers) (GPT-2; Radford et al., 2019).
    """
    shape = weight_shape(config, name)
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    std = config.initializer_range
    if name.endswith(BEFORE_THE_RESIDUAL):
        std /= math.sqrt(2 * config.num_hidden_layers)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def weight_shape(config: ModelConfig, name: str) -> tuple[int, ...]:
    """Shape of the whole weight of this training name."""
    h, d, ffn = config.hidden_size, config.head_dim, config.intermediate_size
    qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * d
    if name in VOCABULARY:
        return config.vocab_size, h
    shapes = {
        "linear_qkv.weight": (qkv, h),
        "linear_qkv.bias": (qkv,),
        "linear_proj.weight": (h, config.num_attention_heads * d),
        "linear_fc1.weight": (2 * ffn, h),
        "linear_fc2.weight": (h, ffn),
        "q_layernorm.weight": (d,),
        "k_layernorm.weight": (d,),
    }
    return next((shape for suffix, shape in shapes.items() if name.endswith(suffix)), (h,))


def initialise(config: ModelConfig, parameters, seed: int, rank: int = 0, size: int = 1) -> None:
    """Fill (training name, parameter) pairs, parameters being the shards of tensor-parallel rank `rank` of `size`."""
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(shard(name, first_weight(config, name, seed), rank, size))
