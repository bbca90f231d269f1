"""What the processes of `tests.parallel_world` are asked to do with the ZeRO engine."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pretrain import runtime
from pretrain.config import OptimSection, ZeroSection
from pretrain.engines.zero3 import Zero3Engine
from pretrain.parallel import ParallelLayout
from tests.model.tiny_training import training_config
from tests.pretrain.parallel_jobs import (
    OPTIM,
    ROWS,
    STEPS,
    TOKENS,
    mixed_rows,
    numbers,
    places_of,
    rows_here,
    train_past_a_bad_step,
    train_with,
    train_with_text_beside_pictures,
)


def make_engine(
    changes: dict, parallel: ParallelLayout, zero: ZeroSection, optim: OptimSection = OPTIM, precision: str = "fp32"
) -> Zero3Engine:
    """An engine of a tiny model on all processes of this job."""
    config = training_config(initializer_range=0.2, **changes)
    runtime.start_distributed(0, parallel.tensor)
    return Zero3Engine(config, optim, precision, TOKENS, 0, parallel, zero)


def train(
    changes: dict,
    parallel: ParallelLayout,
    zero: ZeroSection,
    optim: OptimSection = OPTIM,
    steps: int = STEPS,
    precision: str = "fp32",
) -> tuple:
    """(figures of each step, figures of a measurement at the end, final whole weights)."""
    return train_with(make_engine(changes, parallel, zero, optim, precision), optim, steps)


def train_on_text_beside_pictures(zero: ZeroSection) -> tuple:
    """Text on some ranks, pictures on the others."""
    return train_with_text_beside_pictures(make_engine({}, ParallelLayout(), zero))


def train_zero_past_a_bad_step(zero: ZeroSection, precision: str, kind: str) -> tuple:
    """With this engine."""
    engine = make_engine({}, ParallelLayout(), zero, precision=precision)
    return train_past_a_bad_step(engine, list(engine.names), kind)


def elements_on_a_rank(zero: ZeroSection) -> tuple[int, int]:
    """(elements of weights, elements that this rank holds of them)."""
    engine = make_engine({}, ParallelLayout(), zero)
    assert all(parameter.numel() == 0 for parameter in engine.names)
    return sum(parameter.ds_numel for parameter in engine.names), sum(len(stretch.weight) for stretch in engine.held)


def precision_of_weights(zero: ZeroSection, precision: str, fp16: bool) -> set[torch.dtype]:
    """Of the parts that this rank holds, on a device of which DeepSpeed believes that it has fp16, or has none."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: fp16
    try:
        engine = make_engine({}, ParallelLayout(), zero, precision=precision)
    finally:
        del accelerator.is_fp16_supported
    return {parameter.ds_tensor.dtype for parameter in engine.names}


def written_boxes(changes: dict, parallel: ParallelLayout, zero: ZeroSection, precision: str = "fp32") -> list[tuple]:
    """As that of `parallel_jobs`."""
    return places_of(make_engine(changes, parallel, zero, precision=precision))


def figures_before_and_after_a_load(zero: ZeroSection, folder: Path) -> tuple[list, list]:
    """Figures of what follows a checkpoint, a step and a measurement, before and after the engine went back to it."""
    from pretrain.sharded_files import write_boxes

    engine = make_engine({}, ParallelLayout(), zero)
    rows = mixed_rows(engine.model_config)

    def figures() -> list:
        stepped = numbers(engine.train_step(rows_here(rows[ROWS : 2 * ROWS]), OPTIM.lr))
        return [stepped, numbers(engine.evaluate(rows_here(rows[:ROWS])))]

    engine.train_step(rows_here(rows[:ROWS]), OPTIM.lr)
    write_boxes(folder, engine.boxes())
    before = figures()
    engine.load(folder, 1)
    return before, figures()


def outputs_kept(parallel: ParallelLayout, zero: ZeroSection) -> tuple[int, int]:
    """(outputs of norms and activation functions in layers, those of them that are there when a backward pass begins)."""
    from torch.multiprocessing.reductions import StorageWeakRef

    from model.layer_specs import CHEAP

    engine, outputs, kept = make_engine({}, parallel, zero), [], []
    for module in engine.stages[0].decoder.layers.modules():
        if type(module) in CHEAP:
            module.register_forward_hook(lambda _, __, output: outputs.append(StorageWeakRef(output.untyped_storage())))
    backward = engine.engine.backward

    def watched(loss):
        kept.extend(output for output in outputs if not output.expired())
        backward(loss)

    engine.engine.backward = watched
    ranks = torch.distributed.get_world_size()
    engine.train_step(rows_here(mixed_rows(engine.model_config)[:ranks]), OPTIM.lr)
    return len(outputs), len(kept)


def load_and_save(config: Path, start: Path, output: Path) -> int:
    """A checkpoint into the megatron engine on 2 tensor- x 2 data-parallel ranks with the distributed optimizer, and out
    again -> ranks of this job."""
    from pretrain.config import load_config
    from pretrain.data import Data
    from pretrain.engines import make_engine as engine_of
    from pretrain.process_ranks import process_ranks_here
    from pretrain.sharded_files import write_boxes

    loaded = load_config(config, ["run.engine=megatron", "parallel.tensor=2", "parallel.distributed_optimizer=true"])
    runtime.start_distributed(0, 2)
    engine = engine_of(loaded, Data(loaded, process_ranks_here()).model_config)
    engine.load(start, 4)
    write_boxes(output, engine.boxes())
    return torch.distributed.get_world_size()


def threads_and_a_step(zero: ZeroSection) -> int:
    """Threads of this process before a job that makes groups, and an engine that trains in them."""
    before = len(os.listdir("/proc/self/task"))
    train({}, ParallelLayout(), zero, steps=1)
    return before


def host_reads(zero: ZeroSection) -> int:
    """Times that the host would wait for a number of the device in a step of two rows, the second of two steps."""
    from unittest.mock import patch

    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            self.count += str(function).startswith("aten._local_scalar_dense")
            return function(*arguments, **(keywords or {}))

    engine = make_engine({}, ParallelLayout(), zero, precision="bf16")
    rows, reads, tolist = mixed_rows(engine.model_config), Reads(), torch.Tensor.tolist

    def counted(tensor):
        reads.count += 1
        return tolist(tensor)

    engine.train_step(rows_here(rows[:ROWS]), OPTIM.lr)
    with patch.object(torch.Tensor, "tolist", counted), reads:
        engine.train_step(rows_here(rows[ROWS : 2 * ROWS]), OPTIM.lr)
    return reads.count
