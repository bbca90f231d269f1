"""Classifier-free guidance with one scale for the text and one for the source image. Imports torch only.

Guidance (Ho and Salimans, arXiv 2207.12598) moves the logits away from those of a prompt that says nothing. A picture
that is edited has two conditions, and InstructPix2Pix (Brooks et al., arXiv 2211.09800, equation 3) gives each a scale:

    logits = u + image_scale * (i - u) + text_scale * (c - i)

where c is the whole prompt, i the source picture without the instruction, and u neither. With one scale for both this
is u + scale * (c - u), which Uni-X uses for text to picture (arXiv 2509.24365); i then plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Scalars = float | Tensor
LARGEST = 1e6  # of a scale: logits times more leave the range of float32 at low temperatures
Scale = float | Sequence[float] | Callable[[int, int], float]
"""A number, one number a code, or a function of (code, codes in all)."""


def scales_of(scale: Scale, num_codes: int) -> list[float]:
    """Scale of each code. Raises ValueError for a list of another length, and for values that are no numbers."""
    if callable(scale):
        scales = [float(scale(code, num_codes)) for code in range(num_codes)]
    elif isinstance(scale, Sequence):
        if len(scale) != num_codes:
            raise ValueError(f"{len(scale)} guidance scales for {num_codes} codes: give one number, or one a code")
        scales = [float(number) for number in scale]
    else:
        scales = [float(scale)] * num_codes
    if not all(abs(number) <= LARGEST for number in scales):  # NaN is not, either
        raise ValueError(f"guidance scales are {min(scales)} to {max(scales)}: give numbers up to {LARGEST:,.0f}")
    return scales


def linear(first: float, last: float) -> Callable[[int, int], float]:
    """Guidance scale that changes linearly from `first` at the first code of an image to `last` at its last one."""
    return lambda code, num_codes: first + (last - first) * code / max(1, num_codes - 1)


def weights_of(text: Sequence[float], image: Sequence[float] | None) -> list[tuple[float, float, float]]:
    """Weights of the conditional (c), image-only (i) and unconditional (u) logits of each code; they add up to 1.
    `image` None: the same scale as `text`."""
    return [(t, v - t, 1.0 - v) for t, v in zip(text, text if image is None else image, strict=True)]


def weights_at(step: int, rows: Sequence[Sequence[tuple[float, float, float]]], device) -> tuple[Scalars, ...]:
    """Weights of c, i and u at a code, for rows with own schedules and lengths: numbers, or [b, 1] where rows
    differ."""
    each = [weights[min(step, len(weights) - 1)] for weights in rows]
    if len(set(each)) == 1:
        return each[0]
    return tuple(torch.tensor(column, device=device)[:, None] for column in zip(*each, strict=True))


def combine(parts: Sequence[Tensor], weights: Sequence[Scalars]) -> Tensor:
    """Weighted sum of logits. Weight 1 alone returns the logits bit for bit.

    Weights are numbers, or [b, 1] for logits [b, codes].
    """
    if any(isinstance(weight, Tensor) for weight in weights):
        return sum((part * weight for part, weight in zip(parts[1:], weights[1:], strict=True)), parts[0] * weights[0])
    used = [part if weight == 1 else part * weight for part, weight in zip(parts, weights, strict=True) if weight]
    return sum(used[1:], used[0]) if used else parts[0] * 0.0
