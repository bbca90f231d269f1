#!/usr/bin/env python
"""Controlled comparison of layer kinds: equal data, tokens, activated parameters and tuning, several seeds, one report.

Trains a shared transformer, hard MoE, Mixture-of-Transformers, and Uni-X with separated layers at either end and at both,
after `make demo` has made the pictures. Every training is a cell with its own folder: a killed study resumes, and a failed
cell is shown as failed, retried by the next start, and makes the exit code 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
from dataclasses import asdict

from pretrain.system.errors import run_command
from tools.study.run import (
    check_reported_study,
    check_same_study,
    measure_entropies,
    measure_speed,
    prepare,
    run_cells,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/run_study.py --preset quick",
    )
    parser.add_argument(
        "--preset", choices=("quick", "full"), default="quick", help="how much to train (default: quick)"
    )
    parser.add_argument("--data", type=Path, default=Path("work/data"), help="what make demo made (default: work/data)")
    parser.add_argument("--folder", type=Path, help="of this study (default: work/study-PRESET)")
    parser.add_argument("--packages", type=Path, help="folder with the Debian packages of the texts (default: fetched)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=0,
        metavar="N",
        help="cells at a time, each on one thread (default: one for each core)",
    )
    parser.add_argument("--only", type=int, default=0, metavar="N", help="stop after N more cells, with what there is")
    parser.add_argument("--report", action="store_true", help="write the report of what is there; train nothing")
    arguments = parser.parse_args()
    for name in ("only", "jobs", "packages"):
        if arguments.report and getattr(arguments, name):
            parser.error(f"--{name} changes nothing of --report, which trains nothing: leave it out")
    if arguments.jobs < 0 or arguments.only < 0:
        parser.error("--jobs and --only count cells: 0 (all), 1, 2, ...")
    return arguments


def main() -> int:
    """Prepare, run unfinished cells, report."""
    arguments = parse_arguments()
    from tools.study.data import check_demo, fingerprints, sources
    from tools.study.plan import ARMS, PRESETS
    from tools.study.report import collect, write

    preset, data = PRESETS[arguments.preset], arguments.data
    folder = arguments.folder or Path(f"work/study-{preset.name}")
    if arguments.report:
        check_reported_study(folder, json.loads(json.dumps({"preset": asdict(preset), "arms": ARMS})))
        check_demo(data)
    else:
        prepare(data, arguments.packages)
        read = fingerprints(data)
        plan = {"preset": asdict(preset), "arms": ARMS, "sources": sources(data), "data": read}
        check_same_study(folder, json.loads(json.dumps(plan)))
        paths = {
            "tokenizer": f"{data}/tokenizer",
            "pictures": f"{data}/shards",
            "texts": f"{data}/texts/shards",
            "heldout": f"{data}/texts/heldout-mixed",
            "sources": plan["sources"],
        }
        run_cells(arguments, folder, preset, paths)
    results = collect(folder, preset)
    asked = {
        "entropy": measure_entropies(folder, data),
        "speed": measure_speed(folder, preset, results, f"{data}/texts/heldout-mixed"),
    }
    problems = {name: problem for name, problem in asked.items() if problem}
    write(folder / "report", folder, preset, results, problems)
    failed = [result["cell"]["arm"] for result in results if "failed" in result]
    missing = sum(result.get("missing", False) for result in results)
    print(
        f"{folder}/report/report.md is written: {len(results) - len(failed) - missing} cells done, {len(failed)} failed, "
        f"{missing} not run" + "".join(f"; {name}: {problem}" for name, problem in problems.items())
    )
    return 1 if failed or problems else 0


if __name__ == "__main__":
    run_command(main)
