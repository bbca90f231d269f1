#!/usr/bin/env python
"""Time a training step of several runs' models side by side: the same rows, one thread, in turn.

Every round all models train on one row, each time another one first, so that a machine that gets slower favours none.
Seconds are processor time of this process: what else runs on the machine disturbs them little. Weights are random.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json

from pretrain.system.errors import UserError, run_command

WARM_UP = 2  # warm-up rounds: the first steps allocate


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/study_speed.py --runs work/study-quick/shared-seed0/run work/study-quick/mot-seed0/run "
        "--data work/data/texts/heldout-mixed --output work/speed.json",
    )
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders, whose models are timed")
    parser.add_argument("--data", type=Path, required=True, help="code shards to take rows from")
    parser.add_argument(
        "--sequence-length", "--row-length", type=int, default=1024, help="tokens of a row (default: 1024)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="rows on which each model trains (default: 9)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the seconds of every step")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.sequence_length < 1:
        parser.error("--rounds and --sequence-length must be at least 1")
    return arguments


def main() -> int:
    """Measure and write {"sequence_length": tokens, "seconds": {run: [seconds of each round]}}."""
    arguments = parse_arguments()
    from itertools import islice

    import torch

    from pretrain import checkpoint, runtime
    from pretrain.config import OptimSection
    from pretrain.engines.megatron import MegatronEngine
    from tokenization.files import output_file
    from tools.benchmarks.paired import LR, timed_step
    from tools.runs.checkpoint_model import open_checkpoint, planned_rows
    from tools.study.cells import write_json

    output_file(arguments.output)
    runtime.install()
    torch.set_num_threads(1)
    opened = open_checkpoint(arguments.runs[0])
    wanted = WARM_UP + arguments.rounds
    rows = list(islice(planned_rows(opened, [arguments.data], arguments.sequence_length, text_to_image=0.8), wanted))
    if len(rows) < wanted:
        raise UserError(
            f"{arguments.data}: has {len(rows)} rows of {arguments.sequence_length} tokens, {wanted} are needed: "
            "lower --rounds or --sequence-length"
        )
    engines = {}
    for run in arguments.runs:
        config = checkpoint.read_model(checkpoint.find(run))
        engines[str(run)] = MegatronEngine(config, OptimSection(lr=LR), "fp32", arguments.sequence_length, seed=0)
    seconds: dict[str, list[float]] = {run: [] for run in engines}
    order = list(engines)
    for number, row in enumerate(rows):
        for run in order:
            step = timed_step(engines[run], row)
            if number >= WARM_UP:
                seconds[run].append(step.whole.cpu)
        order = order[1:] + order[:1]
    found = {"sequence_length": arguments.sequence_length, "seconds": seconds}
    write_json(arguments.output, found)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_command(main)
