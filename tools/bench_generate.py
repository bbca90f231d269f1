#!/usr/bin/env python
"""Benchmark of image generation: batch sizes, guidance, token routing and the KV cache, side by side in one run.

Models have random weights, since time does not depend on them. Each round measures every way once, in turn, so that
whatever else the machine does falls on all of them; ratios are taken within a round, and medians over the rounds. Times
are processor times, which other work on the machine changes little; on one thread they are wall times of an idle one.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json

from pretrain.system.errors import UserError, run_command
from tokenization.files import write_text
from tools.benchmarks.generating import (
    BATCH,
    GUIDANCE,
    MODELS,
    build_model,
    draw,
    measure_round,
    report,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/bench_generate.py --model demo --rounds 3",
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="demo", help="sizes of the model and its pictures (default: demo)")
    add("--codes", type=int, default=0, help="codes of a picture (default: all of the model's grid)")
    add("--rounds", type=int, default=5, help="times that each way is measured (default: 5)")
    add("--every", type=int, default=8, help="recompute one code of this many, and multiply (default: 8)")
    add("--threads", type=int, default=1, help="torch threads (default: 1)")
    add("--json", type=Path, help="file for the figures")
    return parser.parse_args()


def main() -> int:
    """Measure, print a table, write the results."""
    arguments = parse_arguments()
    if min(arguments.rounds, arguments.every, arguments.threads) < 1 or arguments.codes < 0:
        raise UserError("--rounds, --every and --threads take at least 1, --codes at least 0: change them")
    from pretrain.system.cpu_memory import keep_freed_memory
    from pretrain.system.light_imports import leave_torchvision_out

    keep_freed_memory()
    leave_torchvision_out()
    import torch

    torch.set_num_threads(arguments.threads)
    model = build_model(arguments.model)
    num_codes = arguments.codes or MODELS[arguments.model][-1] ** 2
    draw(model, BATCH, min(4, num_codes), GUIDANCE)  # warm-up: the first call compiles kernels
    rounds = [measure_round(model, num_codes, arguments.every) for _ in range(arguments.rounds)]
    found = report(rounds)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{arguments.model}: {parameters / 1e6:.1f} M parameters, {num_codes} codes a picture, "
        f"{torch.get_num_threads()} threads, {len(rounds)} rounds, all ways drew the same codes"
    )
    print("| way | s a picture | times the first (least to greatest) |\n|---|---|---|")
    for line in found.values():
        print(
            f"| {line['what']} | {line['seconds_a_picture']:.3f} | {line['times_the_first']:.2f} "
            f"({line['least']:.2f} to {line['greatest']:.2f}) |"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {"model": arguments.model, "parameters": parameters, "codes": num_codes, "ways": found}
        figures["rounds"] = rounds
        write_text(arguments.json, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
