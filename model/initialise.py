"""Weight initialization that depends on the seed and the weight's name alone: the same model under every parallel
layout."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from model.config import ModelConfig
from model.tensor_shards import shard, whole_shape

BEFORE_THE_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")


def initialise(
    config: ModelConfig, parameters: Iterable[tuple[str, Tensor]], seed: int, rank: int = 0, ranks: int = 1
) -> None:
    """Fill (training name, parameter) pairs in place: norms 1, biases 0, matrices normal.

    The parameters are what tensor-parallel rank `rank` of `ranks` holds. Matrices that write into the residual stream
    are narrower by sqrt(2 * layers) (GPT-2; Radford et al., 2019).
    """
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(first_weight(config, name, parameter.shape, seed, rank, ranks))


def first_weight(
    config: ModelConfig, name: str, shape: Sequence[int], seed: int, rank: int = 0, ranks: int = 1
) -> Tensor:
    """Initial value of one weight, of which this rank holds `shape`: float32, on the CPU."""
    if name.endswith("norm.weight"):
        return torch.ones(*shape)
    if name.endswith("bias"):
        return torch.zeros(*shape)
    std = config.initializer_range
    if name.endswith(BEFORE_THE_RESIDUAL):
        std /= math.sqrt(2 * config.num_hidden_layers)
    whole = torch.empty(whole_shape(name, shape, ranks))
    return shard(name, whole.normal_(0.0, std, generator=generator_of(seed, name)), rank, ranks)


def generator_of(seed: int, name: str) -> torch.Generator:
    """Random generator of a weight."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
