#!/usr/bin/env python
"""Measure gradient conflict between text and image tokens, for each layer and matrix of a checkpoint.

Conflict is -(cos(g_text, g_image) - cos(g_half1, g_half2)) (arXiv 2509.24365): 0 where the two gradients differ no more
than gradients of two random halves do, 2 at most. Text gradients come from text targets alone, image gradients from
picture codes alone, all from equally many; intervals (95 %) come from a bootstrap over blocks of documents. With
torchrun the matrices are shared out over the processes, each of which holds the whole model.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import math

from pretrain.system.errors import UserError, run_command
from pretrain.system.output_file import check_output_folder, check_own_output
from tools.analysis.conflict import (
    measure,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/measure_conflict.py --checkpoint work/demo/run --data work/data/shards/train "
        "--output work/demo/conflict",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder (its newest good one) or checkpoint")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of code shards")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for conflict.csv, .png, .json and summary.md"
    )
    parser.add_argument(
        "--text",
        choices=("any", "plain", "captions"),
        default="any",
        help="text targets: any (default), of documents without a picture, or of those with one",
    )
    parser.add_argument(
        "--blocks", type=int, default=16, help="blocks of each modality, for the bootstrap (default: 16)"
    )
    parser.add_argument("--targets", type=int, default=256, help="target tokens of a block (default: 256)")
    parser.add_argument(
        "--sequence-length", "--row-length", type=int, default=2048, help="tokens of a row (default: 2048)"
    )
    parser.add_argument(
        "--text-to-image",
        type=float,
        default=0.5,
        help="share of captioned pictures that are drawn; the others are captioned (default: 0.5)",
    )
    parser.add_argument(
        "--memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="for the gradients of all blocks; less takes more passes (default: 4)",
    )
    parser.add_argument("--seed", type=int, default=0, help="order of documents, and bootstrap (default: 0)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: all cores)")
    arguments = parser.parse_args()
    check(arguments)
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError for values that would be of no use after the checkpoint is loaded, or after the measurement."""
    if not 0 <= arguments.text_to_image <= 1:
        raise UserError(f"--text-to-image {arguments.text_to_image}: it is a share, 0 to 1")
    if not 0 < arguments.memory < math.inf:
        raise UserError(f"--memory {arguments.memory:g}: give GiB above 0")
    for name, least, most in (("seed", 0, 2**63 - 1), ("threads", 0, 10_000), ("targets", 1, 2**31)):
        if not least <= getattr(arguments, name) <= most:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be from {least} to {most}")
    folders = [path.resolve() for path in arguments.data]
    for path, folder in zip(arguments.data, folders, strict=True):
        if folders.count(folder) > 1:  # blocks of the same documents would make intervals too narrow
            raise UserError(f"--data {path}: is given twice: name each folder once")
    check_output_folder(arguments.output, "--output")
    check_own_output(arguments.output, "--output", "summary.md", "conflict.json")


def main() -> int:
    """Measure; the first process writes."""
    arguments = parse_arguments()
    from pretrain import runtime

    runtime.install()
    from pretrain.coordination import all_processes
    from tools.analysis.conflict_profile import estimates, write
    from tools.runs.checkpoint_model import open_checkpoint

    opened = open_checkpoint(arguments.checkpoint, arguments.threads)
    together = all_processes(1800.0)
    grams = together.all_do(lambda: measure(opened, arguments, together))
    gathered = {name: gram for part in together.gathered(grams) for name, gram in part.items()}
    found = estimates(opened.config, gathered, arguments.seed)
    if together.rank == 0:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
        settings |= {"data": [str(path) for path in arguments.data], "checkpoint": str(opened.folder)}
        write(arguments.output, found, opened.config, json.loads(json.dumps(settings)))
        print((arguments.output / "summary.md").read_text(encoding="utf-8"))
    runtime.leave_distributed()
    return 0


if __name__ == "__main__":
    run_command(main)
