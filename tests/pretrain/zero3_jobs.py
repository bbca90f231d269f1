"""What the processes of `tests.parallel_world` are asked to do with the ZeRO engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from pretrain import runtime
from pretrain.config import OptimSection, ZeroSection
from pretrain.engines.zero3 import Zero3Engine
from pretrain.parallel import ParallelLayout
from tests.model.tiny_training import training_config
from tests.pretrain.parallel_jobs import OPTIM, ROWS, STEPS, TOKENS, mixed_rows, rows_here


def make_engine(changes: dict, parallel: ParallelLayout, zero: ZeroSection, optim: OptimSection = OPTIM) -> Zero3Engine:
    """An engine of a tiny model on all processes of this job."""
    config = training_config(initializer_range=0.2, **changes)
    runtime.start_distributed(0, parallel.tensor)
    return Zero3Engine(config, optim, "fp32", TOKENS, 0, parallel, zero)


def train(
    changes: dict, parallel: ParallelLayout, zero: ZeroSection, optim: OptimSection = OPTIM, steps: int = STEPS
) -> tuple:
    """(figures of each step, figures of a measurement at the end, final whole weights)."""
    engine = make_engine(changes, parallel, zero, optim)
    rows = mixed_rows(engine.model_config)
    figures = []
    for step in range(steps):
        batch = rows_here(rows[step * ROWS : (step + 1) * ROWS])
        figures.append(dataclasses.astuple(engine.train_step(batch, optim.lr)))
    measured = dataclasses.astuple(engine.evaluate(rows_here(rows[:ROWS])))
    return figures, measured, {name: tensor.clone() for name, tensor in engine.weights()}


def load_and_save(config: Path, start: Path, output: Path) -> int:
    """A checkpoint into the megatron engine on 2 tensor- x 2 data-parallel ranks with the distributed optimizer, and out
    again -> ranks of this job."""
    from pretrain.config import load_config
    from pretrain.data import Data
    from pretrain.loop import make_engine as engine_of
    from pretrain.place import place_here
    from pretrain.sharded_files import write_pieces

    loaded = load_config(config, ["run.engine=megatron", "parallel.tensor=2", "parallel.distributed_optimizer=true"])
    runtime.start_distributed(0, 2)
    engine = engine_of(loaded, Data(loaded, place_here()))
    engine.load(start, 4)
    write_pieces(output, engine.pieces())
    return torch.distributed.get_world_size()
