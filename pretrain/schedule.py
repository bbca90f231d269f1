"""Learning rate as a function of the step."""

from __future__ import annotations

import math

DECAYS = ("cosine", "linear", "constant")


def learning_rate(step: int, *, peak: float, final: float, warmup: int, steps: int, decay: str) -> float:
    """Learning rate of step `step` (from 0): linear warm-up to `peak` over `warmup` steps, then decay to `final` at
    `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if decay == "cosine":
        return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))
    if decay == "linear":
        return peak + (final - peak) * progress
    return peak
