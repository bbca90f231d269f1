"""Set-up of a GPU check: device, sizes, and synchronized clocks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


class NotRun(Exception):
    """Why a section cannot be measured here; the table shows it."""


@dataclass(frozen=True)
class Setting:
    """Device and sizes: those of a GPU, or small ones that test the script on a CPU."""

    device: str  # cuda or cpu
    model: str  # of tools.benchmarks.cases.SIZES
    tokens: tuple[int, ...]  # lengths of rows
    precisions: tuple[str, ...]  # of steps
    repeats: int

    @property
    def gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"


def setting_of(device: str, model: str = "") -> Setting:
    """Default set-up of a device; `model` chooses another size."""
    if device == "cuda":
        return Setting(device, model or "3b", (8192, 10240, 20480), ("bf16",), 8)
    return Setting(device, model or "tiny", (64, 128), ("fp32", "bf16"), 2)


def wait(device: str) -> None:
    """Synchronize with the device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def median_seconds(
    action: Callable[[], object], device: str, repeats: int, warm: int = 2
) -> tuple[float, float, float]:
    """(least, median, greatest) seconds of `action`, after `warm` calls."""
    for _ in range(warm):
        action()
    times = []
    for _ in range(repeats):
        wait(device)
        begin = time.perf_counter()
        action()
        wait(device)
        times.append(time.perf_counter() - begin)
    return min(times), statistics.median(times), max(times)
