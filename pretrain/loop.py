"""The training loop, which reads top to bottom, and what is set up before it.

All processes of a run go through it in step. What one of them finds alone, a signal or a damaged shard, becomes a decision
of all before the next collective.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from model.disk import tell
from model.errors import TryAgain, UserError
from model.kernels import in_use
from model.weight_shapes import parameters
from pretrain import machine, rank_log, runtime
from pretrain.attempt import INTERRUPTED, Attempt, TakenOver, claim
from pretrain.config import TrainConfig
from pretrain.conflict.watch import ConflictWatch
from pretrain.data import Data
from pretrain.metrics import Metrics, Pace, duration, progress_line
from pretrain.parallel import stages_per_rank
from pretrain.place import place_here
from pretrain.progress import NO_STEPS, Progress, what_was_wrong
from pretrain.rank_log import RankLog
from pretrain.records import Records
from pretrain.row_sharing import RowSharing
from pretrain.row_tensors import Row
from pretrain.run_folder import go_back, hold, note_event, open_run, resume, settings_changed
from pretrain.sampler import Sampler
from pretrain.saver import Saver
from pretrain.schedule import learning_rate
from pretrain.together import Together, all_processes
from pretrain.watchdog import Watchdog

LINE_SECONDS = 30.0  # after which a line is printed, however few steps there were
ESTIMATE_AFTER = 2  # steps of a start; the first one also warms up
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Set by SIGINT, SIGTERM and SIGUSR1, which schedulers send ahead of the end: the loop then finishes its step, saves
    and leaves. The handlers are its own while it runs.
    """

    def __init__(self):
        self.asked, self.signal = False, ""

    def __enter__(self) -> Stop:
        self.before = {number: signal.signal(number, self._ask) for number in STOPPING_SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, _frame) -> None:
        if self.asked:
            raise KeyboardInterrupt  # asked twice: do not wait for the step
        self.asked = True
        self.signal = signal.Signals(number).name
        tell(f"{self.signal}: saving after this step, then stopping")


@dataclass
class Work:
    """What the loop works with, made by `train`."""

    config: TrainConfig
    engine: object
    data: Data
    heldout: list[Row]
    sharing: RowSharing
    sampler: Sampler
    saver: Saver
    together: Together
    attempt: Attempt
    records: Records
    log: RankLog
    watchdog: Watchdog
    stop: Stop
    watch: ConflictWatch | None

    def state(self, progress: Progress) -> dict:
        """What a checkpoint says beside its tensors."""
        return {**progress.state(), "plan": self.data.train.plan.fingerprint, "vq": self.config.data.vq}


GOING, STOPPING, FAILED, OUSTED = range(4)  # what a process finds before a step; the largest of all is what happens


def loop(work: Work, progress: Progress) -> bool:  # noqa: C901
    """Train on from `progress`, which moves along, to the end or until a process is asked to stop.

    False when too many steps were no good and the run should go back.
    """
    config, engine, together, stop, watchdog = work.config, work.engine, work.together, work.stop, work.watchdog
    optim, log, steps, per_step = config.optim, config.log, config.run.steps, config.data.rows_per_step
    run, resilience = work.attempt.run, config.resilience
    metrics = together.all_do(
        lambda: Metrics(run, progress.step, log.tensorboard, work.records, log.wandb) if together.rank == 0 else None
    )
    pace = Pace(steps - progress.step)
    loader = work.data.training_rows(progress.rows, lambda: stop.asked)

    def measure_heldout() -> None:
        if work.heldout:
            values = {f"heldout/{name}": value for name, value in engine.evaluate(work.heldout).means().items()}
            if metrics:
                metrics.write(progress.step, values)
            told = ", ".join(f"{name[8:]} {value:.3f}" for name, value in values.items())
            together.say(f"held-out after {progress.step} steps: {told}")

    def save() -> None:
        work.saver.save(progress.step, engine.pieces(), work.state(progress))

    saved = progress.step
    if progress.step == 0:
        measure_heldout()
    while progress.step < steps:
        begun = time.perf_counter()
        batch, error = None, None
        try:
            if together.rank == 0:
                work.attempt.check()
            batch = next(loader) if work.sharing.reads and not stop.asked else None
        except (UserError, TryAgain, TakenOver, RuntimeError, OSError, EOFError) as raised:
            error = None if stop.asked else raised  # the signal went to the whole job, loader workers included
        read = time.perf_counter()
        ousted = isinstance(error, TakenOver)
        found = together.largest(OUSTED if ousted else FAILED if error else STOPPING if stop.asked else GOING)
        if found >= FAILED:
            if found == FAILED and saved != progress.step:  # the weights are as good as before the rows were asked for
                save()
                work.saver.wait()
            together.all_do(lambda: fail(error))  # noqa: B023
        if found == STOPPING:
            break
        batch = work.sharing.share(batch)
        shared = time.perf_counter()
        lr = learning_rate(
            progress.step,
            peak=optim.lr,
            final=optim.final_lr,
            warmup=optim.warmup_steps,
            steps=steps,
            decay=optim.decay,
        )
        figures = engine.train_step(batch, lr, lambda figures: progress.sound(figures, resilience))
        progress.note(figures, per_step, resilience)
        progress.add(figures)
        step = progress.step
        last = step == steps
        seconds = time.perf_counter() - begun
        watchdog.step(seconds)
        work.log.step(step, seconds, read - begun, shared - read, figures.alone)
        pace.add(per_step * config.data.row_length, shared - begun)
        if not figures.updated:
            wrong, first, end = what_was_wrong(figures), progress.rows - per_step, progress.rows
            together.say(f"warning: step {step} (rows {first} to {end - 1}) is left out: {wrong}")
            if together.rank == 0:
                note_event(work.records, work.attempt, "bad step", step=step, rows=[first, end], why=wrong)
        if pace.steps == ESTIMATE_AFTER and steps - step > ESTIMATE_AFTER:
            together.say(
                f"a step takes {pace.last_step:.2g} s: about {duration(pace.last_step * (steps - step))} to go"
            )
        logged = step % log.every == 0 or last
        if logged or pace.is_due(LINE_SECONDS):
            rate, data_wait, left = pace.take()
            values = {f"train/{name}": value for name, value in progress.means().items()}
            values |= {
                "train/grad_norm": figures.grad_norm,
                "train/learning_rate": lr,
                "train/rows": progress.rows,
                "train/bad_steps": step - progress.updates,
                "tok_per_sec_per_gpu": rate / together.size,
                "data_wait_pct": data_wait,
            }
            if logged:
                progress.since_line = list(NO_STEPS)
                if metrics:
                    metrics.write(step, values)
            together.say(progress_line(step, steps, values, rate, data_wait, left))
        if progress.too_many(resilience):
            work.saver.wait()
            if metrics:
                metrics.close()
            return False
        if last or (log.heldout_every and step % log.heldout_every == 0):
            measure_heldout()
        if work.watch and step % log.conflict_every == 0:
            engine.settle()
            metrics.write(step, work.watch.measure(engine.stages[0]))
        if log.samples_every and (step % log.samples_every == 0 or last):
            work.sampler.draw(engine, step, work.records, watchdog.alive)
        if step % config.checkpoint.every == 0 or last:
            save()  # last: what is in a checkpoint's past has been written down
            saved = step
        watchdog.alive()
    if saved != progress.step:
        save()
    work.saver.finish()
    if metrics:
        metrics.close()
    return True


def fail(error: Exception | None) -> None:
    """Raise it, if there is one here."""
    if error is not None:
        raise error


def train(config: TrainConfig, command: list[str]) -> int:
    """Set everything up, on this process and together with the others, then run the loop -> the exit code.

    The configuration must have passed `check_world` for the processes that there are.
    """
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.run.deterministic:
        runtime.use_deterministic_kernels()
    runtime.start_distributed(
        config.run.seed,
        config.parallel.tensor,
        config.parallel.pipeline,
        stages_per_rank(config.parallel, config.model.num_hidden_layers),
        config.run.timeout,
    )
    together = all_processes(config.run.timeout)
    run, steps = Path(config.run.folder), config.run.steps
    data = together.all_do(lambda: Data(config, place_here()))
    sharing = RowSharing(data.place)
    rows = together.all_do(lambda: data.heldout_rows(config.log.heldout_rows) if sharing.reads else None)
    heldout = sharing.share(rows)
    engine = together.all_do(lambda: make_engine(config, data))
    sampler = together.all_do(lambda: Sampler(config, data, run, together))
    watch = together.all_do(lambda: make_watch(config, data, heldout, together))
    warnings = together.first_does(
        lambda: list(data.warnings())
    )  # what cannot be trained on is refused before a folder is made
    lock = together.all_do(lambda: hold(run) if together.rank == 0 else None)
    for line in warnings:
        together.say(f"warning: {line}")
    attempt = together.first_does(lambda: claim(run))
    progress = together.all_do(lambda: resume(config, run, engine, data, together))
    if progress.step >= steps:
        together.say(f"{run} is finished: {progress.step} of {steps} steps are done")
        return 0
    together.say(about(config, parameters(data.model_config), progress.step))
    if engine.torch_optimizer is not None:
        together.say(in_use(config.run.kernels, config.run.fp8, engine.torch_optimizer, config.run.engine))
    # not before: a start that is refused leaves a run as it was
    machines = together.gathered(machine.describe())
    settings = together.first_does(lambda: settings_changed(run, config)) if progress.step else ""
    changed = together.first_does(lambda: open_run(config, command, run, machines, attempt.number))
    if changed and progress.step:
        together.say(f"other machines than before ({changed}): losses follow to rounding, not to the last bit")
    if settings:
        together.say(f"other settings than at the last start: {settings}")
    logs, options = rank_log.folder_of(run, attempt.number), config.resilience
    saver = Saver(attempt, config.checkpoint, data.checkpoint_files(), together)
    stacks = logs / f"rank_{together.rank:04d}.stacks"
    with (
        Records(together.say, attempt.owns) as records,
        Records(lambda _: None) as own,  # the same disk: rank 0 tells
        RankLog(logs, together.rank, own) as log,
        Watchdog(stacks, options.hang_factor, options.hang_seconds, together.rank) as watchdog,
        Stop() as stop,
    ):
        work = Work(
            config,
            engine,
            data,
            heldout,
            sharing,
            sampler,
            saver,
            together,
            attempt,
            records,
            log,
            watchdog,
            stop,
            watch,
        )
        while not loop(work, progress):
            progress = go_back(config, attempt, records, engine, together, progress)
            saver.save(progress.step, engine.pieces(), work.state(progress))  # a restart goes on from here, too
        if together.rank == 0 and progress.step < steps:
            note_event(records, attempt, INTERRUPTED, step=progress.step, signal=stop.signal or "another process")
    if lock is not None:
        lock.close()
    going_on = "" if progress.step == steps else "; the same command goes on from here"
    together.say(f"{run}: {progress.step} of {steps} steps done{going_on}")
    return 130 if going_on else 0


def about(config: TrainConfig, weights: int, done: int) -> str:
    """What a run is about, in a line, before its first step."""
    per_step, left = config.data.rows_per_step * config.data.row_length, config.run.steps - done
    return (
        f"{weights / 1e6:,.1f} million parameters; {config.data.rows_per_step:,} rows of {config.data.row_length:,} tokens a step "
        f"({per_step:,}), {left:,} steps to do ({left * per_step / 1e6:,.1f} million tokens); a line every {config.log.every} steps, "
        f"or {LINE_SECONDS:.0f} seconds"
    )


def make_engine(config: TrainConfig, data: Data):
    """The engine that the configuration names."""
    run = config.run
    arguments = (data.model_config, config.optim, run.precision, config.data.row_length, run.seed, config.parallel)
    if run.engine == "zero3":
        from pretrain.engines.zero3 import Zero3Engine

        return Zero3Engine(*arguments, config.zero)
    from pretrain.engines.megatron import MegatronEngine

    return MegatronEngine(*arguments, run.kernels, run.fp8)


def make_watch(config: TrainConfig, data: Data, heldout: list[Row], together: Together) -> ConflictWatch | None:
    """What measures gradient conflict, on rank 0 alone, if it is asked for."""
    if not config.log.conflict_every or together.rank:
        return None
    return ConflictWatch(data.model_config, heldout, config.log.conflict_targets)
