"""Argument types that several commands use: bounded numbers, scales, the device."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from pretrain.system.errors import UserError

LARGEST_SCALE = 1_000_000  # as in model.hf.guidance_uni_x, which imports torch


def at_least(lowest: float, number: type, most: float = math.inf) -> Callable[[str], int | float]:
    """Argument type: a finite number of at least `lowest` and at most `most`."""

    def parse(text: str) -> int | float:
        value = number(text)
        if not lowest <= value < math.inf or value > most:
            and_most = f" and at most {most:,}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {lowest}{and_most}")
        return value

    parse.__name__ = number.__name__
    return parse


def share(text: str) -> float:
    """Argument type: a number above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def scale(text: str) -> float | tuple[float, float]:
    """Argument type: a guidance scale, or FIRST:LAST, two of them."""
    first, colon, last = text.partition(":")
    number = at_least(0, float, LARGEST_SCALE)
    return (number(first), number(last)) if colon else number(first)


def choose_device(name: str) -> str:
    """cpu or cuda, from auto, cpu and cuda. Raises UserError where there is no GPU."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here: use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
