"""Runner of the study: data, cells and measurements, in order."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pretrain.system.errors import RunFailed, UserError


def prepare(data: Path, packages: Path | None) -> None:
    """Download texts and make their code shards. Raises UserError or RunFailed."""
    from tools.study.cells import run_command_here
    from tools.study.data import check_demo, preparation

    check_demo(data)
    log = data / "texts.log"
    for name, command, made in preparation(data, packages):
        if made.exists():
            continue
        print(f"data: {name}", flush=True)
        if run_command_here(command, log):
            last = log.read_text(encoding="utf-8").splitlines()[-1]
            raise RunFailed(f"the data step {name} failed, see {log}: {last}")


def check_same_study(folder: Path, plan: dict) -> None:
    """Raises UserError when the folder holds cells of another plan or of other data."""
    from tools.study.cells import write_json

    path = folder / "study.json"
    if path.is_file():
        try:
            there = dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            raise UserError(f"{path}: cannot be read: choose another --folder, or remove {folder}") from None
        if there != plan:
            different = next((key for key in plan if there.get(key) != plan[key]), "plan")
            raise UserError(f"{folder} holds a study with another {different}: choose another --folder, or remove it")
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --folder")
    elif folder.is_dir() and (other := next(folder.iterdir(), None)):
        raise UserError(f"{folder} holds no study, but {other.name}: choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)


def check_reported_study(folder: Path, plan: dict) -> None:
    """Raises UserError unless the folder holds a study of this plan, as far as that is known without its data."""
    path = folder / "study.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: {folder} holds no study: give its --folder, or leave --report out")
    try:
        there = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: cannot be read: choose another --folder, or remove {folder}") from None
    for key, value in plan.items():
        if there.get(key) != value:
            raise UserError(f"{folder} holds a study with another {key}: give its --preset, or another --folder")


def run_cells(arguments: argparse.Namespace, folder: Path, preset, paths: dict) -> list[dict]:
    """Run all cells in order: tuning, comparison, proposal -> results and failures."""
    from tools.study.cells import DONE, PROPOSAL, best_rates, do_cell, read_json, write_json
    from tools.study.plan import main_cells, suggested_cells, tuning_cells

    results, left = [], arguments.only or math.inf

    def is_done(cell, measured: bool) -> bool:
        path = folder / cell.name / DONE
        return path.is_file() and (not measured or "measures" in read_json(path))

    def one(cell, measured: bool, was_done: bool) -> dict:
        begin = time.time()
        result = do_cell(folder, preset, cell, paths, measured)
        if not was_done:
            state = f"failed: {result['failed']}" if "failed" in result else f"held-out {result['heldout']:.3f}"
            print(f"{cell.name}: {state} ({time.time() - begin:.0f} s)", flush=True)
        return result

    def do(cells: Iterable, measured: bool = True) -> list[dict]:
        nonlocal left
        states = [
            (cell, is_done(cell, measured)) for cell in cells
        ]  # a damaged file is reported before any cell starts
        with ThreadPoolExecutor(arguments.jobs or os.cpu_count()) as pool:
            begun = []
            for cell, was_done in states:
                if was_done or left > 0:
                    begun.append(pool.submit(one, cell, measured, was_done))
                    left -= not was_done
            try:
                found = [future.result() for future in begun]
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
        results.extend(found)
        return found

    rates = best_rates(do(tuning_cells(preset), measured=False), preset)
    do(main_cells(preset, rates))
    shared = [cell for cell in main_cells(preset, rates) if cell.arm == "shared"]
    profile = folder / shared[0].name / "conflict" if shared else folder
    if shared and profile.is_dir():
        from tools.analysis.separation import conflicts_of, propose
        from tools.study.plan import LAYERS, SEPARATED_LAYERS

        proposal = propose(conflicts_of(profile, "layer"), SEPARATED_LAYERS / LAYERS)
        write_json(folder / PROPOSAL, proposal)
        do(suggested_cells(preset, proposal, rates))
    return results


def measure_entropies(folder: Path, data: Path) -> str | None:
    """Measure entropies once per study -> None, or why it failed."""
    from tools.study.cells import run_command_here
    from tools.study.data import LANGUAGES

    output = folder / "entropy"
    if (output / "summary.md").is_file():
        return None
    texts = [f"{language}={data}/texts/shards/{language}/train" for language in LANGUAGES]
    command = [
        "tools/measure_entropy.py",
        "--text",
        *texts,
        "--image",
        f"pictures={data}/shards/train",
        "--output",
        str(output),
    ]
    code = run_command_here(command, folder / "entropy.log")
    return f"exit code {code}, see {folder}/entropy.log" if code else None


def measure_speed(folder: Path, preset, results: list[dict], heldout: str) -> str | None:
    """Time steps of all arms side by side, once per study, when all have a run -> None, or why it failed."""
    from tools.study.cells import SPEED, run_command_here
    from tools.study.plan import ARMS, SPEED_ROUNDS

    runs = {result["cell"]["arm"]: result["run"] for result in results if "measures" in result}
    if (folder / SPEED).is_file() or not set(runs) >= set(ARMS):
        return None
    command = [
        "tools/study_speed.py",
        "--runs",
        *(runs[arm] for arm in ARMS),
        "--data",
        heldout,
        "--sequence-length",
        str(preset.sequence_length),
        "--rounds",
        str(SPEED_ROUNDS),
        "--output",
        str(folder / SPEED),
    ]
    code = run_command_here(command, folder / "speed.log")
    return f"exit code {code}, see {folder}/speed.log" if code else None
