#!/usr/bin/env python
"""What a training step of Uni-X costs next to a model of the same activated size whose layers are all shared.

Both models train side by side in one process, step by step in turn, on rows of captioned pictures (a) and on long
documents, half text and half vision (b). Printed are the medians of paired ratios, the ratio that the FLOP count
predicts, the ratio that attention and matrix products measured by themselves predict, and the time of each part. On a
CPU times are processor times of this process, so that others on the machine disturb little; wall time is printed too.

--memory measures something else: the peak memory of forward and backward of one long document, in a model with one
separated and one shared layer. --profile writes what torch.profiler saw of one step.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import dataclasses
import json
import shlex
import subprocess

from pretrain.system.errors import UserError, run_command
from tokenization.files import write_text

OPTIMIZER_LR = 1e-4


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python tools/bench_step.py --json work/bench.json\n"
        "  python tools/bench_step.py --model tiny --rows b --documents 64,256\n"
        "  python tools/bench_step.py --model 3b --memory\n"
        "  python tools/bench_step.py --model 3b --device cuda --documents 8192,20480 --profile work/profile.txt",
    )
    parser.add_argument("--model", choices=("tiny", "small", "3b"), default="small", help="size (default: small)")
    parser.add_argument("--layers", type=int, default=0, help="layers (default: 4; 6 of the 3b's 36)")
    parser.add_argument("--rows", default="a,b", help="kinds of rows: a, b or a,b (default)")
    parser.add_argument("--documents", default="2048,8192,20480", help="tokens of the documents of b (2048,8192,20480)")
    parser.add_argument("--steps", type=int, default=16, help="pairs of steps of each case at most, even (default: 16)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds after which a case has enough pairs (60)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it must run (default: cpu)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="", help="default: bf16 on a GPU, else fp32")
    parser.add_argument("--memory", action="store_true", help="peak memory of the longest of --documents instead")
    parser.add_argument("--profile", type=Path, help="file for a profile of one step on the last case (.json: a trace)")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    arguments.rows, arguments.documents = check_rows(arguments.rows, arguments.documents)
    arguments.precision = arguments.precision or ("bf16" if arguments.device == "cuda" else "fp32")
    for name in ("steps", "threads"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be at least 1")
    return arguments


def check_rows(rows: str, documents: str) -> tuple[list[str], list[int]]:
    """The two lists of the command line. Raises UserError."""
    kinds = rows.split(",")
    if not set(kinds) <= {"a", "b"}:
        raise UserError(f"--rows {rows}: give a, b or a,b")
    try:
        return kinds, [int(tokens) for tokens in documents.split(",")]
    except ValueError:
        raise UserError(f"--documents {documents}: give whole numbers with commas between, as in 2048,8192") from None


def commit() -> str:
    """Short name of the commit that is checked out, with a + when files differ from it; empty outside of git."""
    root = Path(__file__).resolve().parents[1]
    words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def start(arguments: argparse.Namespace) -> None:
    """Threads, stand-ins for a missing GPU, process group. Raises UserError where the device is another one."""
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
    """A training engine as `pretrain/train.py` makes it, with random weights."""
    from pretrain.config import OptimSection
    from pretrain.engines.megatron import MegatronEngine

    return MegatronEngine(config, OptimSection(lr=OPTIMIZER_LR), arguments.precision, sequence_length, seed=0)


def compare(arguments: argparse.Namespace) -> dict:
    """Measure all cases and print the tables; returns the figures."""
    from pretrain.flops import row_flops
    from tools.benchmarks import cases, paired, parts, tables

    config = cases.uni_x_config(arguments.model, arguments.layers)
    configs = {tables.UNI_X: config, tables.SHARED_MODEL: cases.shared_config(config)}
    made = cases.cases(config, arguments.model, arguments.rows, arguments.documents)
    engines = {name: engine(each, arguments, len(made[0].row.ids)) for name, each in configs.items()}
    clock = "wall" if arguments.device == "cuda" else "cpu"
    figures = []
    for case in made:
        seconds = {name: parts.part_seconds(each, case.row) for name, each in engines.items()}  # warms both up
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
    """Measure and print the memory of one long document; returns the figures."""
    from pretrain.system.cpu_memory import return_freed_memory
    from tools.benchmarks import cases, memory

    return_freed_memory()  # else the allocator's habits are measured, which GPUs do not have
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


def main() -> int:
    """Measure, print, write."""
    arguments = parse_arguments()
    measured = commit()
    start(arguments)
    found = measure_memory(arguments) if arguments.memory else compare(arguments)
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("model", "precision", "threads", "device")}
        found = {"command": shlex.join(["python", *sys.argv]), "commit": measured, **settings, **found}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.json, json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
