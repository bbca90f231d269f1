"""A run from its configuration to its end: set-up on all processes, the loop, and the last line."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from model import gpu_kernels
from model.kernels import in_use
from model.weight_shapes import parameters
from pretrain import machine, rank_log, runtime, torchrun
from pretrain.config import TrainConfig
from pretrain.config_checks import without_effect
from pretrain.conflict.watch import ConflictWatch
from pretrain.coordination import Coordinator, all_processes
from pretrain.data import Data
from pretrain.engines import ENGINES, make_engine
from pretrain.engines.stages import this_device
from pretrain.fencing import INTERRUPTED, claim
from pretrain.loop import Work, loop
from pretrain.parallel import stages_per_rank
from pretrain.process_ranks import process_ranks_here
from pretrain.rank_log import RankLog
from pretrain.records import Records
from pretrain.report import LINE_SECONDS
from pretrain.row_sharing import RowSharing
from pretrain.row_tensors import Row
from pretrain.run_folder import hold, note_event, open_run, resume, roll_back, settings_changed
from pretrain.sample_writer import SampleWriter
from pretrain.saver import Saver
from pretrain.stop import Stop
from pretrain.system.logs import EarlyWarnings
from pretrain.system.words import counted
from pretrain.watchdog import Watchdog


def train(config: TrainConfig, command: list[str]) -> int:
    """Set up this process and the run, then run the loop -> the exit code.

    The configuration must have passed `check_world` for the processes that there are.
    """
    with EarlyWarnings() as early:
        return _train(config, command, early)


def _train(config: TrainConfig, command: list[str], early: EarlyWarnings) -> int:
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
    coordinator = all_processes(config.run.timeout)
    run, steps = Path(config.run.folder), config.run.steps
    data = coordinator.all_do(lambda: Data(config, process_ranks_here()))
    # before the rows and the model: what is out of proportion may need more memory than there is
    for line in coordinator.first_does(lambda: [*without_effect(config), *data.warnings()]):
        coordinator.warn(line)
    sharing = RowSharing(data.place)
    rows = coordinator.all_do(lambda: data.heldout_rows(config.log.heldout_rows) if sharing.reads else None)
    heldout = sharing.share(rows)
    engine = coordinator.all_do(lambda: make_engine(config, data.model_config))
    sampler = coordinator.all_do(lambda: SampleWriter(config, data, run, coordinator))
    watch = coordinator.all_do(lambda: make_watch(config, data, heldout, coordinator))
    lock = coordinator.all_do(lambda: hold(run) if coordinator.rank == 0 else None)
    attempt = coordinator.first_does(lambda: claim(run))
    progress = coordinator.all_do(lambda: resume(config, run, engine, data, coordinator))
    if progress.skills is not None:
        progress.skills = sorted({*progress.skills, *data.skills()})
    if progress.step >= steps:
        coordinator.say(f"{run} is finished: {progress.step} of {steps} steps are done")
        return 0
    coordinator.say(about(config, parameters(data.model_config), progress.step))
    if engine.torch_optimizer is not None:
        norm = ENGINES[config.run.engine].gradient_norm
        used = (
            in_use(config.run.kernels, config.run.fp8, engine.torch_optimizer, norm),
            gpu_kernels.in_use(this_device()),
        )
        coordinator.say("; ".join(filter(None, used)))
    if seconds := torchrun.notice(os.environ, torchrun.launcher_words()):
        coordinator.say(seconds)
    # not before: a refused start leaves a run unchanged
    machines = coordinator.gathered(machine.describe())
    settings = coordinator.first_does(lambda: settings_changed(run, config)) if progress.step else ""
    changed = coordinator.first_does(lambda: open_run(config, command, run, machines, attempt.number))
    if changed and progress.step:
        coordinator.say(f"other machines than before ({changed}): losses follow to rounding, not to the last bit")
    if settings:
        coordinator.say(f"other settings than at the last start: {settings}")
    logs, options = rank_log.folder_of(run, attempt.number), config.resilience
    saver = Saver(attempt, config.checkpoint, data.checkpoint_files(), coordinator)
    stacks = logs / f"rank_{coordinator.rank:04d}.stacks"
    with (
        Records(coordinator.log, attempt.owns) as records,
        Records(lambda level, line: None) as own,  # the same disk: rank 0 reports it
        RankLog(logs, coordinator.rank, own, early) as log,
        Watchdog(stacks, options.hang_factor, options.hang_seconds, coordinator.rank) as watchdog,
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
            coordinator,
            attempt,
            records,
            log,
            watchdog,
            stop,
            watch,
        )
        while not loop(work, progress):
            progress = roll_back(config, attempt, records, engine, coordinator, progress)
            work.save(progress)  # a restart goes on from here, too
        if coordinator.rank == 0 and progress.step < steps:
            note_event(records, attempt, INTERRUPTED, step=progress.step, signal=stop.signal or "another process")
    if lock is not None:
        lock.close()
    going_on = "" if progress.step == steps else "; the same command goes on from here"
    bad = progress.step - progress.updates
    left_out = f", {bad} of them left out as bad steps (events.jsonl)" if bad else ""
    coordinator.say(f"{run}: {progress.step} of {steps} steps done{left_out}{going_on}")
    return 130 if going_on else 0


def about(config: TrainConfig, weights: int, done: int) -> str:
    """One-line summary of a run before its first step."""
    per_step, left = config.data.global_batch_size * config.data.sequence_length, config.run.steps - done
    return (
        f"{weights / 1e6:,.1f} million parameters; {counted(config.data.global_batch_size, 'row')} of {config.data.sequence_length:,} tokens "
        f"a step ({per_step:,}), {counted(left, 'step')} to do ({left * per_step / 1e6:,.1f} million tokens); a line every "
        f"{counted(config.log.every, 'step')}, or {LINE_SECONDS:.0f} seconds"
    )


def make_watch(config: TrainConfig, data: Data, heldout: list[Row], coordinator: Coordinator) -> ConflictWatch | None:
    """The gradient conflict watch, on rank 0, if configured."""
    if not config.log.conflict_every or coordinator.rank:
        return None
    return ConflictWatch(data.model_config, heldout, config.log.conflict_targets)
