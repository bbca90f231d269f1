#!/usr/bin/env python
"""How fast rows come from a local disk, and which share of real training steps waits for them.

Both are measured with the configuration of a run, for several numbers of loader workers, which take turns in every round:
rows as fast as they can be had, then a short training whose log says how long it waited.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from itertools import islice

from model.errors import RunFailed, run_command

LOG_EVERY = 20  # steps between two figures; the first of a training is left out, since its first steps are slow


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example (after make demo):\n  python tools/benchmarks/loading.py --config pretrain/configs/demo.yaml",
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="configuration of a training run on one process")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the configuration, as for train.py")
    add("--workers", type=int, nargs="+", default=[0, 2, 4], help="loader processes (default: 0 2 4)")
    add("--rows", type=int, default=400, help="rows that are read (default: %(default)s)")
    add("--steps", type=int, default=100, help=f"steps that are trained, above {LOG_EVERY} (default: %(default)s)")
    add("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.steps < 2 * LOG_EVERY:
        parser.error(f"--steps {arguments.steps} gives no figure: at least {2 * LOG_EVERY}")
    return arguments


def main() -> int:
    """Run the benchmark."""
    arguments = parse_arguments()
    read, trained = defaultdict(list), defaultdict(list)
    for number in range(arguments.rounds):
        for workers in arguments.workers:
            read[workers].append(read_rows(arguments, workers))
            trained[workers].append(train(arguments, workers))
    for workers in arguments.workers:
        rates, lengths, first = zip(*read[workers])
        print(f"{workers} workers: {told(rates, '.1f')} rows/s, {told([r * n / 1e6 for r, n in zip(rates, lengths)])} "
              f"million tokens/s, first row after {told(first)} s")  # fmt: skip
    for workers in arguments.workers:
        waits, rates = zip(*trained[workers])
        print(f"{workers} workers: a training step waits {told(waits)} % of its time; {told(rates, ',.0f')} tokens/s")
    return 0


def told(values, style: str = ".2f") -> str:
    """Median and range."""
    return f"{statistics.median(values):{style}} ({min(values):{style}} to {max(values):{style}})"


def read_rows(arguments: argparse.Namespace, workers: int) -> tuple[float, int, float]:
    """Rows per second once the first is there, their length in tokens, and the seconds until the first."""
    from pretrain.config import load_config
    from pretrain.data import Data
    from pretrain.loader import rows_from
    from pretrain.place import Place

    config = load_config(arguments.config, arguments.set)
    data = Data(config, Place())
    began = time.monotonic()
    rows = rows_from(data.train, 0, 0, 1, workers)
    next(rows)
    first, began = time.monotonic() - began, time.monotonic()
    for _ in islice(rows, arguments.rows):
        pass
    return arguments.rows / (time.monotonic() - began), config.data.row_length, first


def train(arguments: argparse.Namespace, workers: int) -> tuple[float, float]:
    """Percent of its time that a training waits for rows, and tokens per second: medians of its log."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, str(ROOT / "pretrain/train.py"), "--config", str(arguments.config), *arguments.set,
                   f"run.folder={run}", f"run.steps={arguments.steps}", f"data.workers={workers}", f"log.every={LOG_EVERY}",
                   "log.tensorboard=false", "log.samples_every=0", "log.heldout_every=0"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RunFailed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures = [(line["data_wait_pct"], line["tok_per_sec_per_gpu"]) for line in lines if "data_wait_pct" in line][1:]
    waits, rates = zip(*figures)
    return statistics.median(waits), statistics.median(rates)


if __name__ == "__main__":
    run_command(main)
