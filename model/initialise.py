"""First weights that depend on the seed and on the weight's name alone, not on what was drawn before."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from model.config import ModelConfig

BEFORE_THE_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")


def initialise(config: ModelConfig, parameters: Iterable[tuple[str, Tensor]], seed: int) -> None:
    """Fill (training name, parameter) pairs in place: norms 1, biases 0, matrices normal.

    Matrices that write into the residual stream are narrower by sqrt(2 * layers) (GPT-2; Radford et al., 2019).
    """
    narrower = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in parameters:
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.fill_(0.0)
            else:
                std = narrower if name.endswith(BEFORE_THE_RESIDUAL) else config.initializer_range
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=_generator(seed, name)))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
