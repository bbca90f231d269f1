"""Rotary frequencies, plain or scaled for long context. Travels inside exported checkpoints: imports torch only.

Training and the exported model compute them here. The kinds of scaling are those of transformers, with its names.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """Rotary settings: the base, and {"rope_type": linear, yarn or llama3, settings} or None."""

    theta: float
    scaling: dict[str, Any] | None = None


def frequencies(head_dim: int, rope: Rope, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Rotary frequencies [head_dim / 2] in float32 (Su et al., arXiv 2104.09864), and the factor of cosine and sine."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float()
    plain = 1.0 / (rope.theta ** (steps / head_dim))
    scaling = rope.scaling
    if scaling is None:
        return plain, 1.0
    slow = plain / scaling["factor"]
    if scaling["rope_type"] == "linear":
        return slow, 1.0
    if scaling["rope_type"] == "llama3":
        kept = _kept_by_llama3(plain, scaling)
        return slow * (1 - kept) + plain * kept, 1.0
    if scaling["rope_type"] == "yarn":
        kept = _kept_by_yarn(head_dim, rope.theta, scaling, device)
        return slow * (1 - kept) + plain * kept, attention_factor(scaling)
    raise ValueError(f"rope_scaling has rope_type {scaling['rope_type']!r}: linear, llama3 and yarn are known")


def _kept_by_llama3(plain: Tensor, scaling: dict[str, Any]) -> Tensor:
    """Llama 3.1's ramp: 1 for wavelengths far below the old context length, 0 for those near it or above."""
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    return ((turns - low) / (high - low)).clamp(0, 1)


def _kept_by_yarn(head_dim: int, theta: float, scaling: dict[str, Any], device: torch.device | None) -> Tensor:
    """YaRN's ramp: 1 for dimensions that turn more than `beta_fast` times in the old context, 0 below `beta_slow`
    (arXiv 2309.00071)."""

    def dimension(turns: float) -> float:
        length = scaling["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(theta))

    first, last = dimension(scaling.get("beta_fast", 32.0)), dimension(scaling.get("beta_slow", 1.0))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    steps = torch.arange(head_dim // 2, dtype=torch.float32, device=device)
    return 1 - ((steps - first) / ((last - first) or 0.001)).clamp(0, 1)


def attention_factor(scaling: dict[str, Any]) -> float:
    """YaRN's attention factor of cosine and sine (its section 3.4)."""
    if "attention_factor" in scaling:
        return scaling["attention_factor"]
    factor = scaling["factor"]

    def sharpness(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return sharpness(scaling["mscale"]) / sharpness(scaling["mscale_all_dim"])
    return sharpness(1.0)
