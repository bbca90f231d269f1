"""Timestamps of a device's progress through a step, without synchronizing."""

from __future__ import annotations

import time

import torch


def moment(device: torch.device):
    """Timestamp: a CUDA event on a GPU, the clock elsewhere."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(first, second) -> float:
    """Seconds between two timestamps that the device has passed: the caller has read a later result from it."""
    return second - first if isinstance(first, float) else first.elapsed_time(second) / 1e3
