#!/usr/bin/env python
"""Evaluate the checkpoints of a run, during or after training: results go into the run folder and beside its curves.

Each checkpoint that is not evaluated yet is evaluated by tools/evaluate.py, newest first. Hard links keep it meanwhile, so
that training may remove it. RUN/evaluations/STEP/TASK.json is the result; its scores are in TensorBoard under the tags of
the run's own curves, as the run "evaluations".
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from pretrain.system.errors import RunFailed, UserError, run_command
from tools.evaluation.tasks import EVALUATIONS

EPILOG = """\
example:
  python tools/evaluate_run.py --run work/demo/run "--task heldout --data work/data/shards/heldout"
  python tools/evaluate_run.py --run work/demo/run --follow "--task heldout" \\
    "--task geneval --prompts-file metadata.jsonl --per-kind 2"

Each quoted argument is one evaluation, in the words of tools/evaluate.py without --model, --checkpoint and --output.
{direct} measure the checkpoint itself; the others an export of it, which is removed again. Many of these
commands may work on one run: they share out the checkpoints. A run's own configuration says which held-out rows are
meant. Exit codes: 0 done, 1 an evaluation failed, 2 wrong usage or input.
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG.replace("{direct}", ", ".join(name for name, task in EVALUATIONS.items() if task.of_checkpoints)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder of pretrain/train.py")
    parser.add_argument("evaluations", nargs="+", metavar='"--task NAME ..."', help="what to measure on each")
    parser.add_argument(
        "--step",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="only the checkpoint of this step; repeatable (default: all that are there)",
    )
    parser.add_argument("--follow", action="store_true", help="wait for new checkpoints until the run has its last one")
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="N", help="seconds between two looks of --follow (default 60)"
    )
    return parser.parse_args()


def main() -> int:
    """Evaluate existing checkpoints, then, with --follow, new ones."""
    arguments = parse_arguments()
    import time

    from tools.evaluation import of_run

    evaluations = of_run.parse(arguments.evaluations)
    if not (arguments.run / "config.yaml").is_file():
        raise UserError(f"{arguments.run}: has no config.yaml: give the folder of a run that was started")
    if line := of_run.there_already(arguments.run, evaluations, set(arguments.step)):
        print(line, flush=True)
    failed: set[tuple[int, str]] = set()
    while True:
        last = of_run.finished(
            arguments.run
        )  # before the listing: a checkpoint that arrives meanwhile is seen next time
        of_run.evaluate_all(arguments.run, evaluations, set(arguments.step), failed)
        if not arguments.follow or last:
            break
        time.sleep(arguments.seconds)
    of_run.write_curves(arguments.run)
    if failed:
        listed = ", ".join(f"step {step} {name}" for step, name in sorted(failed))
        where = arguments.run / of_run.FOLDER / "STEP" / "log.txt"
        raise RunFailed(f"{len(failed)} evaluations failed ({listed}): see {where}")
    return 0


if __name__ == "__main__":
    run_command(main)
