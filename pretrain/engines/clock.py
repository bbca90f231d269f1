"""When a device reached a point of the step, without waiting for it there."""

from __future__ import annotations

import time

import torch


def moment(device: torch.device):
    """Now, as the device's queue has it on a GPU, and as the clock has it elsewhere."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(first, second) -> float:
    """Of two moments of a device, which must have passed both: whoever asks has read a number that it made since."""
    return second - first if isinstance(first, float) else first.elapsed_time(second) / 1e3
