"""The training loop, which reads top to bottom, and what is set up before it.

All processes of a run go through it in step. What one of them finds alone, a signal or a damaged shard, becomes a decision
of all before the next collective.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import torch

from model.errors import RunFailed, UserError
from pretrain import runtime
from pretrain.config import TrainConfig
from pretrain.data import Data
from pretrain.metrics import Metrics, Pace, progress_line
from pretrain.parallel import stages_per_rank
from pretrain.place import place_here
from pretrain.row_sharing import RowSharing
from pretrain.row_tensors import Row
from pretrain.run_folder import hold, open_run, resume
from pretrain.sampler import Sampler
from pretrain.saver import Saver
from pretrain.schedule import learning_rate
from pretrain.together import Together, all_processes


STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Set by SIGINT, SIGTERM and SIGUSR1, which schedulers send ahead of the end: the loop then finishes its step, saves and
    leaves. The handlers are its own while it runs.
    """

    def __init__(self):
        self.asked = False

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
        print(f"{signal.Signals(number).name}: saving after this step, then stopping", flush=True)


GOING, STOPPING, FAILED = range(3)  # what a process finds before a step; the largest of all is what happens


def loop(
    config: TrainConfig,
    run: Path,
    engine,
    data: Data,
    heldout: list[Row],
    sharing: RowSharing,
    sampler: Sampler,
    together: Together,
    stop: Stop,
    done: tuple[int, int],
) -> int:
    """Train from `done` = (steps, rows) on, to the end or until a process is asked to stop -> steps done."""
    step, rows = done
    optim, log, steps, per_step = config.optim, config.log, config.run.steps, config.data.rows_per_step
    saver = Saver(run, config.checkpoint, data.checkpoint_files(), together)
    metrics = Metrics(run, step, log.tensorboard) if together.rank == 0 else None
    pace = Pace(steps - step)
    loader = data.training_rows(rows)

    def measure_heldout() -> None:
        if heldout:
            values = {f"heldout/{name}": value for name, value in engine.evaluate(heldout).means().items()}
            if metrics:
                metrics.write(step, values)
            together.say(f"held-out after {step} steps: " + ", ".join(f"{k[8:]} {v:.3f}" for k, v in values.items()))

    def save() -> None:
        saver.save(step, engine.pieces(), {"step": step, "rows": rows, "plan": data.train.plan.fingerprint,
                                           "vq": config.data.vq})  # fmt: skip

    saved = step
    if step == 0:
        measure_heldout()
    while step < steps:
        waiting = time.perf_counter()
        batch, error = None, None
        try:
            batch = next(loader) if sharing.reads and not stop.asked else None
        except (UserError, RuntimeError, OSError, EOFError) as raised:
            error = None if stop.asked else raised  # the signal went to the whole job, loader workers included
        found = together.largest(FAILED if error else STOPPING if stop.asked else GOING)
        if found == FAILED:
            together.all_do(lambda: fail(error))
        if found == STOPPING:
            break
        batch = sharing.share(batch)
        waited = time.perf_counter() - waiting
        lr = learning_rate(step, peak=optim.lr, final=optim.final_lr, warmup=optim.warmup_steps, steps=steps,
                           decay=optim.decay)  # fmt: skip
        try:
            figures = engine.train_step(batch, lr)
        except FloatingPointError as raised:  # the norm is of all processes, so all are here
            reason = RunFailed(f"{run}: step {step + 1} of {steps}: {raised}")
            together.all_do(lambda: fail(reason))
        step, rows = step + 1, rows + per_step
        last = step == steps
        pace.add(per_step * config.data.row_length, waited)
        if step % log.every == 0 or last:
            rate, data_wait, left = pace.take()
            values = {f"train/{name}": value for name, value in figures.means().items()}
            values |= {
                "train/tokens_text": figures.tokens_text,
                "train/tokens_image": figures.tokens_image,
                "train/grad_norm": figures.grad_norm,
                "train/learning_rate": lr,
                "train/rows": rows,
                "tok_per_sec_per_gpu": rate / together.size,
                "data_wait_pct": data_wait,
            }
            if metrics:
                metrics.write(step, values)
            together.say(progress_line(step, steps, values, rate, data_wait, left))
        if last or (log.heldout_every and step % log.heldout_every == 0):
            measure_heldout()
        if log.samples_every and (step % log.samples_every == 0 or last):
            sampler.draw(engine, step)
        if step % config.checkpoint.every == 0 or last:
            save()  # last: what is in a checkpoint's past has been written down
            saved = step
    if saved != step:
        save()
    saver.finish()
    if metrics:
        metrics.close()
    return step


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
    lock = together.all_do(lambda: hold(run) if together.rank == 0 else None)
    done = together.all_do(lambda: resume(config, run, engine, data, together))
    if done[0] >= steps:
        together.say(f"{run} is finished: {done[0]} of {steps} steps are done")
        return 0
    # not before: a start that is refused leaves a run as it was
    together.first_does(lambda: open_run(config, command, run, together.size))
    with Stop() as stop:
        step = loop(config, run, engine, data, heldout, sharing, sampler, together, stop, done)
    if lock is not None:
        lock.close()
    going_on = "" if step == steps else "; the same command goes on from here"
    together.say(f"{run}: {step} of {steps} steps done{going_on}")
    return 130 if going_on else 0


def make_engine(config: TrainConfig, data: Data):
    """The engine that the configuration names."""
    from pretrain.engines.megatron import MegatronEngine

    run = config.run
    return MegatronEngine(
        data.model_config, config.optim, run.precision, config.data.row_length, run.seed, config.parallel
    )
