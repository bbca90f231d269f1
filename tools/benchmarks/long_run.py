#!/usr/bin/env python
"""Benchmark of long runs: watching, numbering attempts and resuming, by length of their logs.

Run folders are made with as many lines of metrics and checkpoint folders as are asked for, and read by this checkout and
by another, one after the other, in one process each. Seconds are CPU seconds, of which the load of the machine changes
little; the median of the repetitions.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import json
import shutil
import subprocess
import tempfile

from pretrain.system.errors import UserError, run_command
from tools.benchmarks.checkouts import FIRST_OF, parsed
from tools.generation.arguments import at_least

LOOK = (
    FIRST_OF
    + """
import inspect, json, resource, statistics, sys, time
from pathlib import Path
sys.path.insert(0, ".")
import yaml
from pretrain.checkpoint import all_checkpoints
from pretrain.metrics import Metrics
from slurm.attempt import last_step
read_run = first_of("tools.runs.state:read_run", "tools.run_state:read_run")

try:  # releases that write their records apart
    from pretrain.records import Records
    own = [Records(lambda level, line: None)]
except ImportError:
    own = []
own = own if "records" in inspect.signature(Metrics).parameters else []

folder, repeats, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def timed(act):
    act()
    seconds = []
    for _ in range(repeats):
        before = time.process_time()
        act()
        seconds.append(time.process_time() - before)
    return statistics.median(seconds)
try:
    read_run(folder)
except Exception:  # a release with the settings' former names, which later ones read, too
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    config = config.replace("global_batch_size", "rows_per_step").replace("sequence_length", "row_length")
    (folder / "config.yaml").write_text(config, encoding="utf-8")
found = {"watch_run, a look": timed(lambda: read_run(folder)), "attempt, its last step": timed(lambda: last_step(folder)),
         "checkpoints, listed": timed(lambda: all_checkpoints(folder)),
         "metrics, resumed": timed(lambda: Metrics(folder, step, False, *own).close())}
print(json.dumps({"seconds": found, "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/benchmarks/long_run.py --base ../other-checkout --lines 100000 --repeats 3",
    )
    parser.add_argument("--base", type=Path, help="another checkout to measure beside this one")
    parser.add_argument(
        "--lines",
        type=at_least(1, int),
        nargs="+",
        default=[1_000, 100_000, 1_000_000],
        help="of metrics (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoints", type=at_least(0, int), default=10_000, help="folders beside them (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=at_least(1, int), default=3, help="(default: %(default)s)")
    return parsed(parser)


def make_run(folder: Path, lines: int, checkpoints: int) -> None:
    """A run folder with a line of training per step, held-out losses every 100 steps, and empty checkpoints."""
    folder.mkdir()
    config = f'{{"run": {{"steps": {lines + 1}}}, "data": {{"global_batch_size": 8, "sequence_length": 1024}}}}\n'
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    names = ("loss", "loss_text", "loss_image", "grad_norm", "learning_rate", "rows", "tokens_text", "tokens_image")
    values = {f"train/{name}": 3.141592653589793 for name in names}
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, lines + 1):
            file.write(
                json.dumps({"step": step, **values, "tok_per_sec_per_gpu": 11000.1, "data_wait_pct": 0.3}) + "\n"
            )
            if step % 100 == 0:
                file.write(json.dumps({"step": step, "heldout/loss": 3.2}) + "\n")
    for number in range(1, checkpoints + 1):
        (folder / "checkpoints" / f"step_{number:08d}").mkdir(parents=True)


def look(side: Path, folder: Path, repeats: int, step: int) -> dict:
    """Time of each reader of a checkout."""
    command = [sys.executable, "-c", LOOK, str(folder), str(repeats), str(step)]
    done = subprocess.run(command, cwd=side, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{side}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def main() -> int:
    """Measure, print a table."""
    arguments = parse_arguments()
    sides = {"base": arguments.base, "here": ROOT} if arguments.base else {"here": ROOT}
    for lines in arguments.lines:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "run"
            make_run(folder, lines, arguments.checkpoints)
            found = {}
            for name, side in sides.items():
                shutil.copy(folder / "metrics.jsonl", Path(parent) / "kept")
                found[name] = look(side, folder, arguments.repeats, lines - 10)
                shutil.move(Path(parent) / "kept", folder / "metrics.jsonl")
        print(
            f"\n| {lines:,} lines, CPU milliseconds | "
            + " | ".join(sides)
            + (" | base / here |" if arguments.base else " |")
        )
        print("|---|" + "---|" * (len(sides) + bool(arguments.base)))
        for what in found["here"]["seconds"]:
            took = [found[name]["seconds"][what] for name in sides]
            ratio = f" {took[0] / took[1]:,.0f} |" if arguments.base else ""
            print(f"| {what} | " + " | ".join(f"{1000 * seconds:,.2f}" for seconds in took) + f" |{ratio}")
        print(
            "| peak memory, MiB | "
            + " | ".join(f"{found[name]['peak MiB']:,.0f}" for name in sides)
            + " |"
            + " |" * bool(arguments.base)
        )
    return 0


if __name__ == "__main__":
    run_command(main)
