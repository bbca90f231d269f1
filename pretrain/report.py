"""Reports of training steps: progress lines, metrics, events of bad steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from model.config import ModelConfig
from pretrain.config import TrainConfig
from pretrain.coordination import Coordinator
from pretrain.engines import StepFigures
from pretrain.fencing import Attempt
from pretrain.flops import row_flops
from pretrain.machine import device_name, peak_memory, peak_tflops
from pretrain.metrics import Metrics, Pace, duration, progress_line
from pretrain.progress import NO_STEPS, Progress, what_was_wrong
from pretrain.records import Records
from pretrain.row_tensors import Row
from pretrain.run_folder import note_event

LINE_SECONDS = 30.0  # seconds after which a line is printed, however few steps there were
ESTIMATE_AFTER = 2  # steps of a start; the first one also warms up


class Report:
    """Progress lines and metrics of one start of a run. All processes have one; rank 0 prints, and alone has
    `metrics`."""

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        coordinator: Coordinator,
        metrics: Metrics | None,
        records: Records,
        attempt: Attempt,
        first_step: int,
    ):
        self._steps, self._every = config.run.steps, config.log.every
        self._rows, self._tokens = (
            config.data.global_batch_size,
            config.data.global_batch_size * config.data.sequence_length,
        )
        self._coordinator, self._metrics, self._records, self._attempt = coordinator, metrics, records, attempt
        self._pace = Pace(self._steps - first_step)
        self._model, self._devices = model, config.parallel.tensor * config.parallel.pipeline  # ranks that share a row
        self._peak = peak_tflops(device_name()) if config.run.precision == "bf16" else None

    def step(self, progress: Progress, figures: StepFigures, lr: float, rows: Sequence[Row], waited: float) -> None:
        """Report a finished step with this rank's `rows`, after `waited` seconds of waiting for data: log and write
        what is due."""
        step, left = progress.step, self._steps - progress.step
        self._pace.add(self._tokens, waited, self._arithmetic(rows) if self._coordinator.rank == 0 else 0.0)
        if not figures.updated:
            self._bad_step(progress, figures)
        if self._pace.steps == ESTIMATE_AFTER and left > ESTIMATE_AFTER:
            seconds = self._pace.last_step
            self._coordinator.say(f"a step takes {seconds:.2g} s: about {duration(seconds * left)} to go")
        logged = step % self._every == 0 or not left
        if not logged and not self._pace.is_due(LINE_SECONDS):
            return
        rate, speed, data_wait, seconds_left = self._pace.take()
        values = {f"train/{name}": value for name, value in progress.means().items()}
        values |= {
            "train/grad_norm": figures.grad_norm,
            "train/learning_rate": lr,
            "train/rows": progress.rows,
            "train/bad_steps": step - progress.updates,
            "tok_per_sec_per_gpu": rate / self._coordinator.size,
            "tflops_per_gpu": speed / 1e12,
            **({"mfu_pct": speed / 1e10 / self._peak} if self._peak else {}),
            "data_wait_pct": data_wait,
            "peak_memory_gib": peak_memory() / 2**30,
        }
        if logged:
            progress.since_line = list(NO_STEPS)
            self._write(step, values)
        self._coordinator.say(progress_line(step, self._steps, values, rate, data_wait, seconds_left))

    def apart(self) -> AbstractContextManager[None]:
        """Context of what is no training step, whose time is not in the figures of the next line."""
        return self._pace.apart()

    def _arithmetic(self, rows: Sequence[Row]) -> float:
        """Model FLOPs of a step per device that has a part of these rows: forward and backward, without
        recomputation."""
        return sum(row_flops(self._model, row.lengths, len(row.targets)).training for row in rows) / self._devices

    def _bad_step(self, progress: Progress, figures: StepFigures) -> None:
        step, first, end = progress.step, progress.rows - self._rows, progress.rows
        wrong = what_was_wrong(figures)
        self._coordinator.warn(f"step {step} (rows {first} to {end - 1}) is left out: {wrong}")
        if self._coordinator.rank == 0:
            note_event(self._records, self._attempt, "bad step", step=step, rows=[first, end], why=wrong)

    def heldout(self, step: int, losses: dict[str, float]) -> None:
        """Report mean losses of the held-out rows after `step` steps, by name."""
        self._write(step, {f"heldout/{name}": value for name, value in losses.items()})
        text = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self._coordinator.say(f"held-out after {step} steps: {text}")

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._metrics is not None:
            self._metrics.write(step, values)

    def close(self) -> None:
        """Wait for pending writes of metrics backends."""
        if self._metrics is not None:
            self._metrics.close()
