"""Trace of some steps by torch's profiler, on rank 0, with a table of operations on CPU and GPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

WARMING_UP = 2  # warm-up steps of a start: the first allocates, in the second the profiler itself warms up
ROWS = 30  # rows of the table


class Profiler:
    """Traces `steps` steps of a start after two warm-up steps; does nothing where `steps` is 0.

    `folder` gets steps_FIRST-LAST.json (Chrome's trace format, for https://ui.perfetto.dev) and steps_FIRST-LAST.txt, the
    operations that take most time.
    """

    def __init__(self, folder: Path, steps: int, first_step: int):
        """first_step: steps that were done before this start."""
        self._profile, self._left = None, steps + WARMING_UP
        self._name = f"steps_{first_step + WARMING_UP + 1}-{first_step + WARMING_UP + steps}"
        self._folder = folder
        if steps:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library prints to stderr when it starts and stops
            from torch.profiler import profile, schedule

            self._profile = profile(schedule=schedule(wait=1, warmup=WARMING_UP - 1, active=steps, repeat=1))
            self._profile.start()

    def step(self, log: Callable[[int, str], None]) -> None:
        """Note the end of a step; after the last traced one files are written, and `log(level, line)` gets their
        place."""
        if self._profile is None:
            return
        self._left -= 1
        if self._left:
            self._profile.step()
            return
        profile, self._profile = self._profile, None
        profile.stop()
        averages = profile.key_averages()
        on_gpu = any(event.device_time_total for event in averages)
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        table = averages.table(sort_by=order, row_limit=ROWS)
        trace = self._folder / f"{self._name}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            trace.with_suffix(".txt").write_text(table + "\n", encoding="utf-8")
            profile.export_chrome_trace(str(trace))
            check_whole(trace)
        except (OSError, RuntimeError, ValueError) as error:
            log(logging.WARNING, f"{trace}: could not be written ({error}); the run goes on")
            return
        log(logging.INFO, f"{trace} is written, and its most costly operations in {trace.with_suffix('.txt').name}")

    def close(self, log: Callable[[int, str], None]) -> None:
        """End tracing if the run ends before the last traced step."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
            log(logging.WARNING, f"log.profile_steps: this start ended {self._left} steps too early for a trace")


def check_whole(trace: Path) -> None:
    """Raises OSError for a truncated trace file: torch reports no error when a disk is full."""
    with open(trace, "rb") as file:
        file.seek(max(0, trace.stat().st_size - 64))
        if not file.read().rstrip().endswith(b"}"):
            raise OSError("it is cut off: no space is left on the device")
