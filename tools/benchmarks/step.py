"""Measurements of tools/bench_step.py: a training step of Uni-X and of a shared model with the same activated
parameters."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

from pretrain.system.errors import UserError
from tokenization.files import write_text

OPTIMIZER_LR = 1e-4


def commit() -> str:
    """Short commit hash of the checkout, with a + for changed files; empty outside of git."""
    root = Path(__file__).resolve().parents[2]
    words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def start(arguments: argparse.Namespace) -> None:
    """Threads, CPU stand-ins, process group. Raises UserError where the device is another one."""
    import torch

    if (arguments.device == "cuda") != torch.cuda.is_available():
        found = "a GPU" if torch.cuda.is_available() else "no GPU"
        remedy = "hide it with CUDA_VISIBLE_DEVICES=" if torch.cuda.is_available() else "leave --device out"
        raise UserError(f"--device {arguments.device}: torch finds {found} here; {remedy}")
    torch.set_num_threads(arguments.threads)
    from pretrain import runtime

    runtime.install()
    runtime.start_distributed(seed=0)


def engine(config, arguments: argparse.Namespace, sequence_length: int):
    """A training engine as in `pretrain/train.py`, with random weights."""
    from pretrain.config import OptimSection
    from pretrain.engines.megatron import MegatronEngine

    return MegatronEngine(config, OptimSection(lr=OPTIMIZER_LR), arguments.precision, sequence_length, seed=0)


def compare(arguments: argparse.Namespace) -> dict:
    """Measure all cases and print the tables; returns the results."""
    from pretrain.flops import row_flops
    from tools.benchmarks import cases, paired, parts, tables

    config = cases.uni_x_config(arguments.model, arguments.layers)
    configs = {tables.UNI_X: config, tables.SHARED_MODEL: cases.shared_config(config)}
    made = cases.cases(config, arguments.model, arguments.rows, arguments.documents)
    engines = {name: engine(each, arguments, len(made[0].row.ids)) for name, each in configs.items()}
    clock = "wall" if arguments.device == "cuda" else "cpu"
    figures = []
    for case in made:
        seconds = {name: parts.part_seconds(each, case.row) for name, each in engines.items()}  # warm-up of both
        steps = [lambda each=each: paired.timed_step(each, case.row) for each in engines.values()]  # noqa: B023
        first, second = steps
        pairs = paired.paired_steps(first, second, arguments.steps, arguments.budget)
        flops = {name: row_flops(each, case.row.lengths, len(case.row.targets)) for name, each in configs.items()}
        some = engines[tables.UNI_X]
        slices = paired.slice_seconds(config, case.row, some.dtype, some.device)
        _, shared_seconds, _ = paired.quartiles([getattr(pair[1].forward_backward, clock) for pair in pairs])
        calibrated = paired.calibrated_ratio(config, slices, shared_seconds)
        figures.append(tables.case_figures(case.name, case.row, pairs, flops, calibrated, seconds, clock))
        figures[-1]["slice_seconds"] = dataclasses.asdict(slices)
        print(f"{case.name}: measured", file=sys.stderr, flush=True)
    print(
        f"{arguments.model}: {config.num_hidden_layers} layers of {config.hidden_size}, {arguments.precision}, "
        f"{arguments.threads} threads, {arguments.device}; Uni-X over shared, {clock} time\n"
    )
    for lines in (
        tables.ratio_table(figures),
        tables.step_table(figures, arguments.device == "cuda"),
        tables.part_table(figures),
    ):
        print("\n".join(lines) + "\n")
    if arguments.profile:
        profile(engines, made[-1].row, arguments.profile)
    return {"model_config": config.to_dict(), "cases": figures}


def profile(engines: dict, row, file: Path) -> None:
    """One step of each model under torch.profiler; `file` gets a table of operators, or a trace if it ends in .json."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        for name, each in engines.items():
            with torch.profiler.record_function(name):
                each.train_step([row], OPTIMIZER_LR)
                torch.cuda.synchronize()
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        seen.export_chrome_trace(str(file))
    else:
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        write_text(file, seen.key_averages().table(sort_by=order, row_limit=50))
    print(f"{file}: one step of each model")


def measure_memory(arguments: argparse.Namespace) -> dict:
    """Measure and print the memory of one long document; returns the results."""
    from pretrain.system.cpu_memory import return_freed_memory
    from tools.benchmarks import cases, memory

    return_freed_memory()  # otherwise the CPU allocator is measured, which GPUs do not have
    config = memory.one_layer_of_each(cases.uni_x_config(arguments.model))
    tokens = max(arguments.documents)
    row = cases.long_row(config, tokens).row
    figures = memory.measure(lambda: engine(config, arguments, tokens), row)
    print(
        f"{arguments.model}: one separated and one shared layer of {config.hidden_size}, {arguments.precision}, "
        f"one document of {tokens:,} tokens, forward and backward\n"
    )
    print("\n".join(memory.memory_lines(figures)))
    return {"model_config": config.to_dict(), "tokens": tokens, "memory": dataclasses.asdict(figures)}
