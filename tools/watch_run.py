#!/usr/bin/env python
"""Watch a run: progress, speed, losses of each modality, restarts and their reasons, and stragglers.

It reads the run folder only, so it works on any machine that sees the folder, for running and finished runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import math
import time

from pretrain.system.errors import UserError, run_command
from tools.runs.state import read_run
from tools.runs.watch import (
    render,
)

LONGEST = 86_400  # seconds between two looks


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/watch_run.py work/demo/run --once",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--once", action="store_true", help="print and leave; also without a terminal")
    parser.add_argument(
        "--every", type=float, default=5, metavar="SECONDS", help="between two looks (default: %(default)s)"
    )
    parser.add_argument(
        "--peak-tflops",
        type=float,
        default=0,
        metavar="N",
        help="of a device, dense, to show MFU: 989 for H100 SXM in bf16, 312 for A100",
    )
    options = parser.parse_args()
    if not 0 < options.every <= LONGEST:
        raise UserError(f"--every {options.every:g}: give seconds above 0, at most {LONGEST:,}")
    if not 0 <= options.peak_tflops < math.inf:
        raise UserError(f"--peak-tflops {options.peak_tflops:g}: give a number above 0, or leave it out")
    return options


def main() -> int:
    """Print once, or until the run is over or the user quits."""
    arguments = parse_arguments()
    state = read_run(arguments.run)
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    if arguments.once or not sys.stdout.isatty():
        console.print(render(state, arguments.peak_tflops))
        return 0
    from rich.live import Live

    with Live(render(state, arguments.peak_tflops), console=console, screen=False) as live:
        try:
            while not state.finished:
                time.sleep(arguments.every)
                state = read_run(arguments.run)
                live.update(render(state, arguments.peak_tflops))
        except KeyboardInterrupt:
            pass  # the way to leave
    return 0


if __name__ == "__main__":
    run_command(main)
