"""What a run says and writes down of its steps: lines for the person who watches, metrics, events of bad steps."""

from __future__ import annotations

from pretrain.attempt import Attempt
from pretrain.config import TrainConfig
from pretrain.engines import StepFigures
from pretrain.machine import peak_memory
from pretrain.metrics import Metrics, Pace, duration, progress_line
from pretrain.progress import NO_STEPS, Progress, what_was_wrong
from pretrain.records import Records
from pretrain.run_folder import note_event
from pretrain.together import Together

LINE_SECONDS = 30.0  # after which a line is printed, however few steps there were
ESTIMATE_AFTER = 2  # steps of a start; the first one also warms up


class Report:
    """The lines and metrics of one start of a run. All processes have one; rank 0 prints, and alone has `metrics`."""

    def __init__(
        self,
        config: TrainConfig,
        together: Together,
        metrics: Metrics | None,
        records: Records,
        attempt: Attempt,
        first_step: int,
    ):
        self._steps, self._every = config.run.steps, config.log.every
        self._rows, self._tokens = config.data.rows_per_step, config.data.rows_per_step * config.data.row_length
        self._together, self._metrics, self._records, self._attempt = together, metrics, records, attempt
        self._pace = Pace(self._steps - first_step)

    def step(self, progress: Progress, figures: StepFigures, lr: float, waited: float) -> None:
        """A step is over, for whose rows `waited` seconds were waited: say and write what is due."""
        step, left = progress.step, self._steps - progress.step
        self._pace.add(self._tokens, waited)
        if not figures.updated:
            self._bad_step(progress, figures)
        if self._pace.steps == ESTIMATE_AFTER and left > ESTIMATE_AFTER:
            seconds = self._pace.last_step
            self._together.say(f"a step takes {seconds:.2g} s: about {duration(seconds * left)} to go")
        logged = step % self._every == 0 or not left
        if not logged and not self._pace.is_due(LINE_SECONDS):
            return
        rate, data_wait, seconds_left = self._pace.take()
        values = {f"train/{name}": value for name, value in progress.means().items()}
        values |= {
            "train/grad_norm": figures.grad_norm,
            "train/learning_rate": lr,
            "train/rows": progress.rows,
            "train/bad_steps": step - progress.updates,
            "tok_per_sec_per_gpu": rate / self._together.size,
            "data_wait_pct": data_wait,
            "peak_memory_gib": peak_memory() / 2**30,
        }
        if logged:
            progress.since_line = list(NO_STEPS)
            self._write(step, values)
        self._together.say(progress_line(step, self._steps, values, rate, data_wait, seconds_left))

    def _bad_step(self, progress: Progress, figures: StepFigures) -> None:
        step, first, end = progress.step, progress.rows - self._rows, progress.rows
        wrong = what_was_wrong(figures)
        self._together.say(f"warning: step {step} (rows {first} to {end - 1}) is left out: {wrong}")
        if self._together.rank == 0:
            note_event(self._records, self._attempt, "bad step", step=step, rows=[first, end], why=wrong)

    def heldout(self, step: int, losses: dict[str, float]) -> None:
        """Mean losses of the held-out rows after `step` steps, by name."""
        self._write(step, {f"heldout/{name}": value for name, value in losses.items()})
        told = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self._together.say(f"held-out after {step} steps: {told}")

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._metrics is not None:
            self._metrics.write(step, values)

    def close(self) -> None:
        """What is written elsewhere is waited for."""
        if self._metrics is not None:
            self._metrics.close()
