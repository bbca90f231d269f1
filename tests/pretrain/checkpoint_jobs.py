"""What the processes of `tests.parallel_world` are asked to do with checkpoints."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from pretrain.sharded_files import write_boxes, write_format
from pretrain.tensor_boxes import TensorBox
from tests.tokenization.store import short_pauses


def example() -> dict[str, torch.Tensor]:
    """Two tensors of distinct values, of two dtypes."""
    return {"matrix": torch.arange(48.0).view(8, 6), "vector": torch.arange(10).to(torch.bfloat16)}


def write_example(folder: Path) -> None:
    """Quarters of the matrix by rank; of the vector ranks 1 and 3 write a part each."""
    rank, tensors = torch.distributed.get_rank(), example()
    matrix, vector = tensors["matrix"], tensors["vector"]
    row, column = 4 * (rank // 2), 3 * (rank % 2)
    boxes = [TensorBox("matrix", (8, 6), (row, column), matrix[row : row + 4, column : column + 3])]
    if rank % 2:
        first, last = (0, 7) if rank == 1 else (7, 10)
        boxes.append(TensorBox("vector", (10,), (first,), vector[first:last]))
    write_boxes(folder, boxes)
    if rank == 0:
        write_format(folder)
    torch.distributed.barrier()


def write_rows(folder: Path, rows: tuple[int, int]) -> None:
    """Rank 1 writes rows 4:8 of the matrix, rank 0 the given ones."""
    first, last = rows if torch.distributed.get_rank() == 0 else (4, 8)
    write_boxes(folder, [TensorBox("matrix", (8, 6), (first, 0), example()["matrix"][first:last])])


def error_of_writing(folder: Path) -> str:
    """The error that this rank gets."""
    try:
        write_rows(folder, (0, 4))
    except Exception as error:
        return f"{error.__class__.__name__}: {error}"
    return ""


def read_with_megatron(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor, read by megatron-core's own functions."""
    from megatron.core import dist_checkpointing

    assert dist_checkpointing.check_is_distributed_checkpoint(str(folder))
    return dist_checkpointing.load_plain_tensors(str(folder))


def train_run(config: Path, overrides: list[str]) -> tuple[int, str, list[int]]:
    """pretrain/train.py without its command line -> (exit code, what this rank printed, documents that it read)."""
    from pretrain import start
    from pretrain.config import load_config
    from pretrain.process_ranks import check_world
    from tokenization.shards import CodeDataset

    loaded = load_config(config, overrides)
    check_world(loaded, torch.distributed.get_world_size())
    read: list[int] = []
    original, printed = CodeDataset.tokens, io.StringIO()

    def tokens(dataset, number):
        read.append(number)
        return original(dataset, number)

    CodeDataset.tokens = tokens
    try:
        with contextlib.redirect_stdout(printed):
            code = start.train(loaded, ["train.py"])
    finally:
        CodeDataset.tokens = original
    return code, printed.getvalue(), read


def measure_conflict(arguments: list[str]) -> int:
    """tools/measure_conflict.py with its command line -> its exit code."""
    from tools import measure_conflict as command

    before, sys.argv = sys.argv, ["tools/measure_conflict.py", *arguments]
    try:
        return command.main()
    finally:
        sys.argv = before


def train_run_with_own_overrides(config: Path, overrides: list[list[str]]) -> tuple[int, str, list[int]]:
    """The same, but each rank has overrides of its own, and waits next to nothing before it asks a store again."""
    short_pauses()
    return train_run(config, overrides[torch.distributed.get_rank()])


def train_run_with_small_files(config: Path, overrides: list[str], rank: int, saves: tuple[int, ...], limit: int):
    """The same, but on one rank no file can grow beyond `limit` bytes during these saves, as on a disk that is full."""
    from pretrain import saver

    original, calls = saver.write_boxes, 0

    def write(*arguments):
        nonlocal calls
        calls += 1
        if torch.distributed.get_rank() != rank or calls not in saves:
            return original(*arguments)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            return original(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    saver.write_boxes = write
    try:
        return train_run(config, overrides)
    finally:
        saver.write_boxes = original


def train_run_on_a_full_disk(config: Path, overrides: list[str], full: int, room: int) -> tuple[int, str, list[int]]:
    """The same, but after step `full` and before step `room` no file of this process can have a byte."""
    from pretrain.engines.megatron import MegatronEngine

    original, steps, before = MegatronEngine.train_step, 0, resource.getrlimit(resource.RLIMIT_FSIZE)

    def train_step(engine, *arguments):
        nonlocal steps
        steps += 1
        limit = 0 if full < steps < room else before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return original(engine, *arguments)

    MegatronEngine.train_step = train_step
    try:
        return train_run(config, overrides)
    finally:
        MegatronEngine.train_step = original
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def train_run_and_die_in_a_save(config: Path, overrides: list[str], rank: int, save: int):
    """The same, but this rank is killed when its files of a save are half written."""
    from pretrain import saver

    original, calls = saver.write_boxes, 0

    def write(folder, boxes, group):
        nonlocal calls
        calls += 1
        if torch.distributed.get_rank() == rank and calls == save:
            (folder / f"__{rank}_0.distcp").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        original(folder, boxes, group)

    saver.write_boxes = write
    return train_run(config, overrides)


def train_run_with_a_slow_rank(config: Path, overrides: list[str], rank: int, delay: float):
    """The same, but this rank needs so many seconds more for each row."""
    from pretrain.engines import megatron

    original = megatron.loss_sums

    def loss_sums(*arguments):
        if torch.distributed.get_rank() == rank:
            time.sleep(delay)
        return original(*arguments)

    megatron.loss_sums = loss_sums
    try:
        return train_run(config, overrides)
    finally:
        megatron.loss_sums = original


def train_run_with_bad_rows(config: Path, overrides: list[str], bad: list[int]):
    """The same, but the loss of these rows has a gradient that is not finite."""
    from model import loss
    from pretrain.engines import common

    original = loss.weighted_loss
    modules = [
        sys.modules[name] for name in ("pretrain.engines.megatron", "pretrain.engines.zero3") if name in sys.modules
    ]
    assert modules, "the engine is imported before, so that its names can be replaced"
    rows: list[int] = []

    def routing_of(row, *arguments):
        rows.append(row.index)
        return common.routing_of(row, *arguments)

    def weighted_loss(*arguments):
        total, losses = original(*arguments)
        return total * (torch.inf if rows[-1] in bad and torch.is_grad_enabled() else 1.0), losses

    for module in modules:
        module.routing_of = routing_of
    loss.weighted_loss = weighted_loss
    try:
        return train_run(config, overrides)
    finally:
        for module in modules:
            module.routing_of = common.routing_of
        loss.weighted_loss = original


def import_engines() -> None:
    """Both, in this process."""
    import pretrain.engines.megatron
    import pretrain.engines.zero3  # noqa: F401

    torch.distributed.barrier()  # nobody is gone before the last has come


def load_and_save(config, start: Path, output: Path) -> None:
    """Weights into an engine on 2 tensor- x 2 pipeline-parallel ranks, and out again."""
    from pretrain import runtime
    from pretrain.config import OptimSection
    from pretrain.engines.megatron import MegatronEngine
    from pretrain.parallel import ParallelLayout

    runtime.start_distributed(0, 2, 2)
    engine = MegatronEngine(config, OptimSection(lr=0.1), "fp32", 64, 9, ParallelLayout(tensor=2, pipeline=2))
    engine.load_weights(start)
    write_boxes(output, engine.boxes())


def write_large(folder: Path, tensors: int) -> None:
    """Tensors of 16 MiB, each cut by rows over the ranks of the job."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    rows = 2048 // ranks
    part = torch.full((rows, 2048), float(rank))
    write_boxes(folder, [TensorBox(f"t{n}", (2048, 2048), (rank * rows, 0), part) for n in range(tensors)])


def wait_for_long_work(signs: int, fails: bool) -> tuple[object, int]:
    """Rank 0 works and gives so many signs -> (what is returned or the error's name, times that this rank was told)."""
    from pretrain import coordination

    told, before = [], coordination.HEARD_SECONDS
    coordination.HEARD_SECONDS = 0.0

    def work(going_on):
        for _ in range(signs):
            going_on()
        if fails:
            raise OSError("the work failed")
        return "done"

    try:
        return coordination.all_processes().wait_for_first(work, lambda: told.append(1)), len(told)
    except (Exception, SystemExit) as error:
        return type(error).__name__, len(told)
    finally:
        coordination.HEARD_SECONDS = before
