"""The training loop: read rows, make a step, report, save. `pretrain/start.py` sets up what it works with.

All processes of a run execute it in lockstep. An event on one process, a signal or a damaged shard, becomes a decision of
all before the next collective.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pretrain.config import TrainConfig
from pretrain.conflict.watch import ConflictWatch
from pretrain.coordination import Coordinator
from pretrain.data import Data
from pretrain.engines import Engine, StepFigures
from pretrain.fencing import Attempt, TakenOver
from pretrain.metrics import Metrics
from pretrain.profiler import Profiler
from pretrain.progress import Progress
from pretrain.rank_log import RankLog
from pretrain.records import Records
from pretrain.report import Report
from pretrain.row_sharing import RowSharing
from pretrain.row_tensors import Row
from pretrain.sample_writer import SampleWriter
from pretrain.saver import Saver
from pretrain.schedule import learning_rate
from pretrain.stop import Stop
from pretrain.system.errors import TryAgain, UserError
from pretrain.watchdog import Watchdog


@dataclass
class Work:
    """Everything that the loop uses, made by `pretrain.start.train`."""

    config: TrainConfig
    engine: Engine
    data: Data
    heldout: list[Row]
    sharing: RowSharing
    sampler: SampleWriter
    saver: Saver
    coordinator: Coordinator
    attempt: Attempt
    records: Records
    log: RankLog
    watchdog: Watchdog
    stop: Stop
    watch: ConflictWatch | None

    def save(self, progress: Progress) -> None:
        """Start saving a checkpoint: tensors and state."""
        state = {**progress.state(), "plan": self.data.train.plan.fingerprint, "vq": self.config.data.vq}
        self.saver.save(progress.step, self.engine.boxes(), state)


GOING, STOPPING, FAILED, OUSTED = range(4)  # status of a process before a step; the maximum over all processes decides


@dataclass
class Batch:
    """Rows of a step for this rank, and when (time.perf_counter) they were requested, read here, and read on all
    ranks."""

    rows: list[Row]
    begun: float
    read: float
    shared: float


def loop(work: Work, progress: Progress) -> bool:
    """Train from `progress`, which is updated, to the end or until a process is asked to stop.

    False when there were too many bad steps and the run should roll back.
    """
    coordinator, config, log = work.coordinator, work.config, work.config.log
    steps, every = config.run.steps, config.checkpoint.every
    metrics = coordinator.all_do(lambda: _metrics(work, progress))
    report = Report(config, work.data.model_config, coordinator, metrics, work.records, work.attempt, progress.step)
    loader = work.data.training_rows(progress.rows, lambda: work.stop.asked)
    profiler = Profiler(work.attempt.run / "profile", log.profile_steps if coordinator.rank == 0 else 0, progress.step)
    saved = progress.step
    if progress.step == 0:
        with report.apart():
            measure_heldout(work, report, 0)
    while progress.step < steps:
        batch, error, found = next_batch(work, loader)
        if found >= FAILED:
            if found == FAILED and saved != progress.step:  # weights are as they were before the rows were requested
                work.save(progress)
                work.saver.wait()
            coordinator.all_do(functools.partial(fail, error))
        if found == STOPPING or batch is None:  # without a batch it is STOPPING: `fail` has raised
            break
        figures, lr = one_step(work, progress, batch)
        step, last = progress.step, progress.step == steps
        report.step(progress, figures, lr, batch.rows, batch.shared - batch.begun)
        profiler.step(coordinator.log)
        if progress.too_many(config.resilience):
            work.saver.wait()
            profiler.close(coordinator.log)
            report.close()
            return False
        with report.apart():
            if last or (log.heldout_every and step % log.heldout_every == 0):
                measure_heldout(work, report, step)
            if work.watch and metrics and step % log.conflict_every == 0:
                work.engine.settle()
                metrics.write(step, work.watch.measure(work.engine.stages[0]))
            if log.samples_every and (step % log.samples_every == 0 or last):
                work.sampler.draw(work.engine, step, work.records, work.watchdog.alive)
            if step % every == 0 or last:
                work.save(progress)  # last: everything before a checkpoint is already written
                saved = step
        work.watchdog.alive()
    if saved != progress.step:
        work.save(progress)
    work.saver.finish()
    profiler.close(coordinator.log)
    report.close()
    return True


def _metrics(work: Work, progress: Progress) -> Metrics | None:
    """Metrics writer on rank 0."""
    if work.coordinator.rank:
        return None
    log = work.config.log
    return Metrics(work.attempt.run, progress.step, log.tensorboard, work.records, log.wandb)


def next_batch(work: Work, loader: Iterator[list[Row]]) -> tuple[Batch | None, Exception | None, int]:
    """Read the rows of a step -> (rows, the error of this rank, the error or stop that all ranks agree on).

    There is a batch only where all are GOING.
    """
    rows, error, stop = None, None, work.stop
    begun = time.perf_counter()
    try:
        if work.coordinator.rank == 0:
            work.attempt.check()
        rows = next(loader) if work.sharing.reads and not stop.asked else None
    except (UserError, TryAgain, TakenOver, RuntimeError, OSError, EOFError) as raised:
        error = None if stop.asked else raised  # the signal went to the whole job, loader workers included
    read = time.perf_counter()
    here = STOPPING if stop.asked else GOING
    if error is not None:
        here = OUSTED if isinstance(error, TakenOver) else FAILED
    found = work.coordinator.largest(here)
    if found != GOING:
        return None, error, found
    rows = work.sharing.share(rows)
    return Batch(rows, begun, read, time.perf_counter()), None, GOING


def one_step(work: Work, progress: Progress, batch: Batch) -> tuple[StepFigures, float]:
    """One optimizer step, skipped if it is bad; `progress` counts it -> (its figures, the learning rate)."""
    config, optim = work.config, work.config.optim
    lr = learning_rate(
        progress.step,
        peak=optim.lr,
        final=optim.final_lr,
        warmup=optim.warmup_steps,
        steps=config.run.steps,
        decay=optim.decay,
    )
    figures = work.engine.train_step(batch.rows, lr, lambda figures: progress.sound(figures, config.resilience))
    progress.note(figures, config.data.global_batch_size, config.resilience)
    progress.add(figures)
    seconds = time.perf_counter() - batch.begun
    work.watchdog.step(seconds)
    work.log.step(progress.step, seconds, batch.read - batch.begun, batch.shared - batch.read, figures.alone)
    return figures, lr


def measure_heldout(work: Work, report: Report, step: int) -> None:
    """Losses of the held-out rows, if there are any."""
    if work.heldout:
        report.heldout(step, work.engine.evaluate(work.heldout).means())


def fail(error: Exception | None) -> None:
    """Raise this rank's error, if there is one."""
    if error is not None:
        raise error
