#!/usr/bin/env python
"""Benchmark of a training step of Uni-X against an all-shared model with the same activated parameters.

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
import json
import math
import shlex

from pretrain.system.errors import UserError, run_command
from pretrain.system.output_file import check_output_file
from tokenization.files import write_text
from tools.benchmarks.step import (
    commit,
    compare,
    measure_memory,
    start,
)


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
    if arguments.threads > 1_000:
        raise UserError(f"--threads {arguments.threads}: must be at most 1,000")
    if not 0 <= arguments.budget < math.inf:
        raise UserError(f"--budget {arguments.budget:g}: give seconds of at least 0")
    check_output_file(arguments.json, "--json")
    check_output_file(arguments.profile, "--profile")
    return arguments


def check_rows(rows: str, documents: str) -> tuple[list[str], list[int]]:
    """Parse the two lists of the command line. Raises UserError."""
    kinds = rows.split(",")
    if not set(kinds) <= {"a", "b"}:
        raise UserError(f"--rows {rows}: give a, b or a,b")
    try:
        return kinds, [int(tokens) for tokens in documents.split(",")]
    except ValueError:
        raise UserError(f"--documents {documents}: give whole numbers with commas between, as in 2048,8192") from None


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
