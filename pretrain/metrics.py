"""Metrics of a run: JSON lines, TensorBoard events, Weights & Biases, and the progress line on the console."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.json_lines import lines_backwards, parsed
from pretrain.records import Records
from pretrain.system.disk import disk_error
from pretrain.system.logs import LOGGER
from pretrain.system.words import counted
from pretrain.tensorboard_log import TensorboardLog
from pretrain.wandb_log import WandbLog


class Metrics:
    """Metrics by step, in `metrics.jsonl` and, if configured, in `tensorboard/` and in Weights & Biases.

    A resumed run writes again the steps after its checkpoint: lines of those steps are dropped first, so that the file
    reads as if the run had never stopped.
    """

    def __init__(self, folder: Path, first_step: int, tensorboard: bool, records: Records, wandb: str = ""):
        """records: writes the files, and retries those that cannot be written. wandb: a project's name, or "" for
        none."""
        self._records, self._path = records, folder / "metrics.jsonl"
        waited = records.release(self._path).splitlines(keepends=True)  # at a rollback the disk may be full
        if self._path.exists() and (damaged := keep_until(self._path, first_step)):
            LOGGER.warning(f"{self._path}: {counted(damaged, 'line')} at its end had no step, and are dropped")
        for line in waited:
            if first_step and _until(line, first_step):
                records.append(self._path, line)
        self._wandb = WandbLog(folder, wandb) if wandb else None
        self._events = TensorboardLog(folder / "tensorboard", first_step + 1, records) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write values, floats by name, as "train/loss", after `step` finished steps. Values that are not finite are
        left out."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._records.append(self._path, (json.dumps({"step": step, **values}) + "\n").encode())
        if self._events is not None:
            self._events.write(step, values)
        if self._wandb is not None:
            self._wandb.write(step, values)

    def close(self) -> None:
        """Wait for W&B; files are written by their records."""
        if self._wandb is not None:
            self._wandb.close()


def keep_until(path: Path, step: int) -> int:
    """Truncate a file after the lines of `step`, and a cut last line -> how many whole lines it drops that have no step.

    Lines are in the order of steps; only the end is read.

    What is kept goes into a file of its own, which is not parsed again: a process of an earlier attempt that is cut off may
    still have the old one open. Where there is no room for that, the old one is cut.
    """
    length = damaged = 0
    for number, (after, line) in enumerate(lines_backwards(path)):
        if step and _until(line, step):
            length = after
            break
        damaged += number > 0 and _step(line) is None  # the first one may be cut
    temporary = path.with_suffix(".partial")
    try:
        with open(path, "rb") as old, open(temporary, "wb") as new:
            copied = 0
            while copied < length:
                copied += os.sendfile(new.fileno(), old.fileno(), copied, length - copied)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if disk_error(error) is None:
            raise
        os.truncate(path, length)
    return damaged


def _step(line: bytes) -> int | None:
    found = (parsed(line) or {}).get("step")
    return found if isinstance(found, int) else None


def _until(line: bytes, step: int) -> bool:
    found = _step(line)
    return found is not None and found <= step


class Pace:
    """Throughput in tokens per second, the share of time spent waiting for data, and the remaining time.

    Throughput is that of training steps: what a run does between them (`apart`) is in the remaining time alone.
    """

    def __init__(self, steps_left: int):
        self.steps_left = steps_left
        self._begin = self._mark = time.perf_counter()
        self._tokens = self._steps = self._all_steps = 0
        self._waited = self._flops = 0.0
        self._step_end, self.last_step = self._begin, 0.0
        self._apart = 0.0

    @property
    def steps(self) -> int:
        """Number of finished steps."""
        return self._all_steps

    def add(self, tokens: int, waited: float, flops: float = 0.0) -> None:
        """Add a finished step: its tokens, the seconds that it waited for rows, FLOPs per device.

        `last_step` has its seconds in all.
        """
        now = time.perf_counter()
        self.last_step, self._step_end = now - self._step_end, now
        self._tokens += tokens
        self._waited += waited
        self._flops += flops
        self._steps += 1
        self._all_steps += 1

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Context of what is no training step: evaluations, sample pictures, saving."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._step_end = time.perf_counter()
            self._apart += self._step_end - before

    def is_due(self, seconds: float) -> bool:
        """Whether `take` is due by its interval."""
        return time.perf_counter() - self._mark >= seconds

    def take(self) -> tuple[float, float, float, float]:
        """Since the last call: tokens and FLOPs per second, waiting in percent; from all steps the remaining
        seconds."""
        now = time.perf_counter()
        elapsed = max(now - self._mark - self._apart, 1e-9)
        rate, waiting, speed = self._tokens / elapsed, 100 * self._waited / elapsed, self._flops / elapsed
        left = (now - self._begin) / max(1, self._all_steps) * (self.steps_left - self._all_steps)
        self._mark, self._waited, self._tokens, self._flops, self._steps, self._apart = now, 0.0, 0, 0.0, 0, 0.0
        return rate, speed, waiting, left


def progress_line(step: int, steps: int, values: dict[str, float], rate: float, waiting: float, left: float) -> str:
    """The progress line of the console."""
    parts = [
        f"{name[6:].replace('loss_', '')} {values[name]:.3f}"
        for name in ("train/loss", "train/loss_text", "train/loss_image")
        if name in values
    ]
    return (
        f"step {step:>{len(str(steps))}}/{steps}  {' '.join(parts)}  lr {values['train/learning_rate']:.1e}  "
        f"grad {values['train/grad_norm']:.2f}  {rate:,.0f} tok/s  {_arithmetic(values)}  data wait {waiting:.0f} %  "
        f"peak {values['peak_memory_gib']:.3g} GiB  {duration(left)} left"
    )


def _arithmetic(values: dict[str, float]) -> str:
    share = f" (MFU {values['mfu_pct']:.1f} %)" if "mfu_pct" in values else ""
    return f"{values['tflops_per_gpu']:.3g} TFLOP/s{share}"


def duration(seconds: float) -> str:
    """Format seconds as hours, minutes, seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
