"""Cells of the study: each is a folder that is done, failed or not begun.

Finished cells are never repeated.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from pretrain.system.errors import UserError
from tokenization.files import write_atomically, write_text
from tools.study.plan import Cell, Preset, settings

ROOT = Path(__file__).resolve().parents[2]
LIBC = ctypes.CDLL(
    None
)  # opened here: between fork and exec of a process with threads as little as possible may happen
DONE, FAILED = "result.json", "failed.json"
SPEED = "speed.json"  # of the study's folder: seconds of steps, arms side by side
PROPOSAL = "proposal.json"  # of the study's folder: which layers the conflict of the shared transformer proposes
HOLDS = {
    DONE: ("cell", "heldout", "curve", "seconds", "run", "commit"),
    FAILED: ("cell", "failed"),
    SPEED: ("sequence_length", "seconds"),
    PROPOSAL: ("shallow", "deep", "conflict", "budget_layers", "added_share", "conflict_covered", "chosen_in"),
}
SET_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl
LAST_LINES = 12  # of the log, in failed.json
Run = Callable[[list[str], Path], int]  # (command, log file to append to) -> exit code


class StepFailed(Exception):
    """A command of a cell ended with this exit code."""

    def __init__(self, command: Sequence[str], code: int):
        super().__init__(f"exit code {code}: python {shlex.join(command)}")


def run_command_here(command: list[str], log: Path) -> int:
    """Run a command of this repository, its output appended to `log`. It ends with this process, however that ends.

    It computes on one thread: sums over several threads have other last bits, and models as small as these gain more by
    training beside each other.
    """
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with open(log, "a", encoding="utf-8") as file:
        print(f"$ python {shlex.join(command)}", file=file, flush=True)
        return subprocess.run(
            [sys.executable, str(ROOT / command[0]), *command[1:]],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        ).returncode


def _end_with_parent() -> None:
    """Parent-death signal: a killed study would leave a training that locks its run folder."""
    LIBC.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def do_cell(
    folder: Path, preset: Preset, cell: Cell, paths: dict, measured: bool = True, run: Run = run_command_here
) -> dict:
    """Train and measure one cell in `folder`/<name>, as far as that is not done -> its result, or its failure ("failed"
    in it).

    Not `measured`: training is enough. A training that was cut off goes on from its newest checkpoint. A cell that failed is
    tried again by the next call. Raises KeyboardInterrupt when the command was interrupted.
    """
    place, commands, before = folder / cell.name, [], 0.0
    config = place / "config.yaml"
    if (place / DONE).is_file():
        result = read_json(place / DONE)
        if "measures" in result or not measured:
            return result
        before = result["seconds"]
    else:
        place.mkdir(parents=True, exist_ok=True)
        values = settings(preset, cell, {**paths, "run": str(place / "run")})
        write_text(config, yaml.safe_dump(values, sort_keys=False))
        commands.append(["pretrain/train.py", "--config", str(config)])
    (place / FAILED).unlink(missing_ok=True)
    if measured:
        commands.append(
            [
                "tools/study_measure.py",
                "--checkpoint",
                str(place / "run"),
                "--pictures",
                paths["pictures"],
                "--texts",
                paths["texts"],
                "--output",
                str(place),
                "--pairs",
                str(preset.pairs),
                "--rows",
                str(preset.rows),
                "--sequence-length",
                str(preset.sequence_length),
                "--blocks",
                str(preset.blocks),
                "--targets",
                str(preset.targets),
            ]
        )
    begin = time.time()
    try:
        for command in commands:
            code = run(command, place / "log.txt")
            if code in (130, -2):
                raise KeyboardInterrupt
            if code:
                raise StepFailed(command, code)
        result = {"cell": cell.to_dict(), **results_of(place, cell, measured)}
    except (StepFailed, OSError, ValueError, KeyError) as error:
        log = (place / "log.txt").read_text(encoding="utf-8").splitlines() if (place / "log.txt").exists() else []
        failure = {"cell": cell.to_dict(), "failed": f"{error}", "log": log[-LAST_LINES:]}
        write_json(place / FAILED, failure)
        return failure
    result["seconds"] = round(before + time.time() - begin, 1)
    write_json(place / DONE, result)
    return result


def results_of(place: Path, cell: Cell, measured: bool) -> dict:
    """Results of a finished training and its measurement. Raises KeyError or OSError when something is missing."""
    lines = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    heldout = [line for line in lines if "heldout/loss" in line]
    start = json.loads((place / "run" / "starts.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    found = {
        "run": str(place / "run"),
        "commit": start["commit"],
        "changed_files": start["changed_files"],
        "curve": [(line["step"], line["heldout/loss_text"], line["heldout/loss_image"]) for line in heldout],
        "heldout": heldout[-1]["heldout/loss"],
        "tokens_per_second": statistics.median(
            line["tok_per_sec_per_gpu"] for line in lines if "tok_per_sec_per_gpu" in line
        ),
    }
    if heldout[-1]["step"] != cell.steps:
        raise KeyError(f"the last held-out measurement is of step {heldout[-1]['step']}, not {cell.steps}")
    if measured:
        found["measures"] = json.loads((place / "measures.json").read_text(encoding="utf-8"))
    return found


def best_rates(results: Sequence[dict], preset: Preset) -> dict[str, float]:
    """Arm -> the learning rate with the lowest final held-out loss.

    An arm is left out until all its rates were tried: fewer would be less tuning than the others had.
    """
    tried: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        if "heldout" in result:
            cell = result["cell"]
            tried.setdefault(cell["arm"], []).append((result["heldout"], cell["learning_rate"]))
    return {arm: min(found)[1] for arm, found in tried.items() if len(found) == len(preset.learning_rates)}


def read_json(path: Path) -> dict:
    """Read one of the files of `HOLDS`. Raises UserError when it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        missing = [key for key in HOLDS[path.name] if key not in found]
        reason = f"it has no {missing[0]}" if missing else ""
    except (OSError, ValueError, TypeError) as error:
        reason = f"{error}"
    if reason:
        raise UserError(f"{path}: cannot be read ({reason}): remove it, the study makes it anew")
    return found


def write_json(path: Path, values) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())
