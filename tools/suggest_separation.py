#!/usr/bin/env python
"""Propose how many layers to separate at each end, from the conflict profile of a shared model and a parameter budget.

Proposes the first and last layers with the most conflict within the parameter budget; a layer whose conflict does not differ
significantly from 0 does not count, and layers that add nothing are not separated. The profile is resampled from its
intervals, which shows how stable the proposal is.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json

from pretrain.system.errors import UserError, run_command
from pretrain.system.output_file import check_output_file
from tokenization.files import write_text
from tools.analysis.separation import (
    conflicts_of,
    propose,
    words,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/suggest_separation.py --profile work/shared/conflict --budget 0.5",
    )
    parser.add_argument("--profile", type=Path, required=True, help="folder that tools/measure_conflict.py wrote")
    parser.add_argument(
        "--budget",
        type=float,
        required=True,
        help="parameters that may be added, as a share of all layers' (0.5: half of the layers twice)",
    )
    parser.add_argument(
        "--matrix",
        choices=("layer", "attention", "ffn"),
        default="layer",
        help="whose conflict decides (default: layer, attention and feed-forward together)",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the proposal and its evidence")
    return parser.parse_args()


def check_output(path: Path | None) -> None:
    """Raises UserError for a file that cannot be written, or that holds something else than a proposal."""
    check_output_file(path, "--output")
    if path is None or not path.exists():
        return
    try:
        proposal = "chosen_in" in json.loads(path.read_bytes())
    except (ValueError, TypeError, RecursionError):
        proposal = False
    if not proposal:
        raise UserError(f"--output {path}: is no proposal of this command: name another file")


def main() -> int:
    """Compute and print the proposal."""
    arguments = parse_arguments()
    check_output(arguments.output)
    found = propose(conflicts_of(arguments.profile, arguments.matrix), arguments.budget)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.output, json.dumps(found, indent=1) + "\n")
    print(words(found))
    return 0


if __name__ == "__main__":
    run_command(main)
