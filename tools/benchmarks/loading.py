#!/usr/bin/env python
"""Benchmark of data loading: rows per second from a local disk or remote storage, and the share of real training steps
spent waiting.

Both are measured with the configuration of a run, for several numbers of loader workers, which take turns in every round:
rows as fast as they can be had, then a short training whose log says how long it waited. With --http each is measured three
times: from the folders, from a server of this machine through an empty cache, and through a full one.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
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
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice, product
from typing import TYPE_CHECKING

from pretrain.system.errors import RunFailed, run_command
from tools.benchmarks.http_store import serving

if TYPE_CHECKING:
    from pretrain.config import SourceSection

LOG_EVERY = 20  # steps between two figures; the first one is left out, since the first steps of a training are slow


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
    add("--http", action="store_true", help="from an HTTP server too")
    add("--latency", type=float, default=0.05, help="seconds before it answers (default: %(default)s)")
    add("--rate", type=float, default=50, help="MB/s of an answer (default: %(default)s)")
    add(
        "--pace",
        type=float,
        default=0,
        metavar="SECONDS",
        help="in place of training, take a row and sleep so long, again and again",
    )
    add(
        "--block-documents",
        type=int,
        default=0,
        metavar="N",
        help="plan in blocks of N documents, as large data has many of (only --pace, --workers 0; default: the planner's)",
    )
    arguments = parser.parse_args()
    if arguments.block_documents and (any(arguments.workers) or not arguments.pace):
        parser.error("--block-documents is known to this process only: give --pace and --workers 0")
    if arguments.steps < 2 * LOG_EVERY:
        parser.error(f"--steps {arguments.steps} gives no figure: at least {2 * LOG_EVERY}")
    return arguments


def main() -> int:
    """Run the benchmark."""
    arguments = parse_arguments()
    from pretrain.config import load_config

    read: defaultdict[str, list] = defaultdict(list)
    trained: defaultdict[str, list] = defaultdict(list)
    sources = load_config(arguments.config, arguments.set).data.sources
    store: AbstractContextManager[list[str] | None] = nullcontext()
    if arguments.http:
        store = serving([source.path for source in sources], arguments.latency, arguments.rate)
    with store as urls, tempfile.TemporaryDirectory() as folder:
        for number, workers in product(range(arguments.rounds), arguments.workers):
            for place in ("folder", "empty cache", "full cache") if urls else ("folder",):
                for kind, found, measure in (
                    ("read", read, read_rows),
                    ("train", trained, take if arguments.pace else train),
                ):
                    overrides = list(arguments.set)
                    if place != "folder":  # the cache is full afterwards
                        overrides += from_store(sources, urls or [], Path(folder, f"{kind}-{number}-{workers}"))
                    found[f"{place}, {workers} workers"].append(measure(arguments, overrides, workers))
    for name, figures in read.items():
        rates, lengths, first = zip(*figures)
        print(
            f"{name}: {spread(rates, '.1f')} rows/s, {spread([r * n / 1e6 for r, n in zip(rates, lengths)])} "
            f"million tokens/s, first row after {spread(first)} s"
        )
    for name, figures in trained.items():
        medians, means, rates = zip(*figures)
        print(
            f"{name}: a training step waits {spread(medians)} % of its time, {spread(means)} % as a mean of all but the first "
            f"{LOG_EVERY} steps; {spread(rates, ',.0f')} tokens/s"
        )
    return 0


def from_store(sources: Sequence[SourceSection], urls: list[str], cache: Path) -> list[str]:
    """Overrides that read the same sources at their URLs."""
    items = [f"{{path: '{url}', weight: {source.weight}, share: {source.share}}}" for source, url in zip(sources, urls)]
    return [f"data.sources=[{', '.join(items)}]", f"data.cache={cache}"]


def spread(values, style: str = ".2f") -> str:
    """Median and range."""
    return f"{statistics.median(values):{style}} ({min(values):{style}} to {max(values):{style}})"


def read_rows(arguments: argparse.Namespace, overrides: list[str], workers: int) -> tuple[float, int, float]:
    """Rows per second after the first, their length in tokens, and the seconds until the first."""
    rows, sequence_length = open_rows(arguments, overrides, workers)
    began = time.monotonic()
    next(rows)
    first, began = time.monotonic() - began, time.monotonic()
    for _ in islice(rows, arguments.rows):
        pass
    return arguments.rows / (time.monotonic() - began), sequence_length, first


def open_rows(arguments: argparse.Namespace, overrides: list[str], workers: int) -> tuple[Iterator, int]:
    """Rows of the configuration's run from the first on, and their length."""
    from pretrain import mixture
    from pretrain.config import load_config
    from pretrain.data import Data
    from pretrain.loader import rows_from
    from pretrain.process_ranks import ProcessRanks

    mixture.BLOCK_DOCUMENTS = arguments.block_documents or mixture.BLOCK_DOCUMENTS
    config = load_config(arguments.config, overrides)
    return rows_from(Data(config, ProcessRanks()).train, 0, 0, 1, workers), config.data.sequence_length


def take(arguments: argparse.Namespace, overrides: list[str], workers: int) -> tuple[float, float, float]:
    """Result of `train` for a consumer without compute: median and mean over intervals of LOG_EVERY rows."""
    rows, sequence_length = open_rows(arguments, overrides, workers)
    shares, seconds = [], []
    for _ in range(arguments.steps // LOG_EVERY):
        waited, began = 0.0, time.monotonic()
        for _ in range(LOG_EVERY):
            asked = time.monotonic()
            next(rows)
            waited += time.monotonic() - asked
            time.sleep(arguments.pace)
        seconds.append(time.monotonic() - began)
        shares.append(100 * waited / seconds[-1])
    rate = statistics.median(LOG_EVERY * sequence_length / took for took in seconds[1:])
    return statistics.median(shares[1:]), statistics.mean(shares[1:]), rate


def train(arguments: argparse.Namespace, overrides: list[str], workers: int) -> tuple[float, float, float]:
    """Share of its time, in percent, that a training waits for rows, median and mean of its log, and the median of
    tokens per second."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [
            sys.executable,
            str(ROOT / "pretrain/train.py"),
            "--config",
            str(arguments.config),
            *overrides,
            f"run.folder={run}",
            f"run.steps={arguments.steps}",
            f"data.workers={workers}",
            f"log.every={LOG_EVERY}",
            "log.tensorboard=false",
            "log.samples_every=0",
            "log.heldout_every=0",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RunFailed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures = [(line["data_wait_pct"], line["tok_per_sec_per_gpu"]) for line in lines if "data_wait_pct" in line][1:]
    waits, rates = zip(*figures)
    return statistics.median(waits), statistics.mean(waits), statistics.median(rates)


if __name__ == "__main__":
    run_command(main)
