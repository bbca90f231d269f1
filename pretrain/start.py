"""A run from its configuration to its end: what is set up on all processes, the loop, and what is said last."""

from __future__ import annotations

from pathlib import Path

import torch

from model.kernels import in_use
from model.weight_shapes import parameters
from pretrain import machine, rank_log, runtime
from pretrain.config import TrainConfig
from pretrain.config_checks import without_effect
from pretrain.conflict.watch import ConflictWatch
from pretrain.coordination import Together, all_processes
from pretrain.data import Data
from pretrain.engines import make_engine
from pretrain.fencing import INTERRUPTED, claim
from pretrain.loop import Work, loop
from pretrain.parallel import stages_per_rank
from pretrain.process_ranks import place_here
from pretrain.rank_log import RankLog
from pretrain.records import Records
from pretrain.report import LINE_SECONDS
from pretrain.row_sharing import RowSharing
from pretrain.row_tensors import Row
from pretrain.run_folder import go_back, hold, note_event, open_run, resume, settings_changed
from pretrain.sample_writer import Sampler
from pretrain.saver import Saver
from pretrain.stop import Stop
from pretrain.watchdog import Watchdog


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
    engine = together.all_do(lambda: make_engine(config, data.model_config))
    sampler = together.all_do(lambda: Sampler(config, data, run, together))
    watch = together.all_do(lambda: make_watch(config, data, heldout, together))
    warnings = together.first_does(
        lambda: [*without_effect(config), *data.warnings()]
    )  # what cannot be trained on is refused before a folder is made
    lock = together.all_do(lambda: hold(run) if together.rank == 0 else None)
    for line in warnings:
        together.say(f"warning: {line}")
    attempt = together.first_does(lambda: claim(run))
    progress = together.all_do(lambda: resume(config, run, engine, data, together))
    progress.skills = sorted({*progress.skills, *data.skills()})
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
            work.save(progress)  # a restart goes on from here, too
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


def make_watch(config: TrainConfig, data: Data, heldout: list[Row], together: Together) -> ConflictWatch | None:
    """What measures gradient conflict, on rank 0 alone, if it is asked for."""
    if not config.log.conflict_every or together.rank:
        return None
    return ConflictWatch(data.model_config, heldout, config.log.conflict_targets)
