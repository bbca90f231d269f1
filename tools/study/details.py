"""Everything that the report's three pages have no room for: tuning, further differences, cells, and CSVs of all numbers."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.study.compare import Arms, differences, values_of
from tools.study.plan import ARMS, WORDS, Preset

CELL_COLUMNS = ("cell", "role", "arm", "seed", "learning_rate", "run")


def write_details(output: Path, folder: Path, preset: Preset, results: list[dict], arms: Arms) -> None:
    """details.md, results.csv, curves.csv, conflict.csv, and entropy.csv and .png where they were measured."""
    write_csv(output / "results.csv", (*CELL_COLUMNS, "measure", "value"), result_lines(results))
    write_csv(output / "curves.csv", (*CELL_COLUMNS, "step", "text_loss", "image_loss"), curve_lines(results))
    write_conflict(output / "conflict.csv", folder, results)
    if (folder / "entropy" / "summary.md").is_file():  # written last
        for name in ("entropy.csv", "entropy.png"):
            shutil.copyfile(folder / "entropy" / name, output / name)
    words = [
        f"# Details of the controlled comparison ({preset.name})",
        "",
        "What it is and what was found is in [report.md](report.md).",
        "",
        "## Tuning",
        "",
        *tuning_table(preset, results),
        "## Differences from Uni-X 2:1, paired by seed",
        "",
        *differences(arms, "unix_both"),
        *trusted_entropies(folder),
        "## Cells",
        "",
        *cells_table(results),
    ]
    (output / "details.md").write_text("\n".join(words), encoding="utf-8")


def tuning_table(preset: Preset, results: list[dict]) -> list[str]:
    """Held-out loss of each arm at each learning rate, short runs and finalists, and which arms were best at an end."""
    rates = sorted(preset.learning_rates)
    short = _losses(result for result in results if result["cell"].get("tuning"))
    lines = _rates_table(f"{preset.tuning_steps} steps, held-out loss at", short, rates)
    if not lines:
        return []
    first = preset.seeds[0]
    full = _losses(
        r for r in results if not r["cell"].get("tuning") and r["cell"]["seed"] == first and r["cell"]["arm"] in ARMS
    )
    ends = {rates[0], rates[-1]}
    at_end = [WORDS[arm] for arm, found in (full or short).items() if min(found, key=found.get) in ends]
    words = "Every arm is best between the ends of the range."
    if at_end:
        words = f"Best at an end of the range, so that a rate beyond it might be better still: {', '.join(at_end)}."
    return [*lines, "", f"With a seed that is used nowhere else. The best {preset.finalists} went on to full length:", "",
            *_rates_table(f"{preset.steps} steps, first seed, held-out loss at", full, rates), "", words, ""]  # fmt: skip


def _losses(results: Iterable[dict]) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = {}
    for result in results:
        if "heldout" in result:
            found.setdefault(result["cell"]["arm"], {})[result["cell"]["learning_rate"]] = result["heldout"]
    return found


def _rates_table(head: str, tried: dict[str, dict[float, float]], rates: list[float]) -> list[str]:
    if not tried:
        return []
    lines = [f"| {head} | {' | '.join(f'{rate:g}' for rate in rates)} |", "|---" * (len(rates) + 1) + "|"]
    for arm, found in tried.items():
        best = min(found, key=found.get)
        shown = [f"{found[rate]:.3f}" if rate in found else "-" for rate in rates]
        shown = [f"**{cell}**" if rate == best else cell for rate, cell in zip(rates, shown)]
        lines.append(f"| {WORDS[arm]} | {' | '.join(shown)} |")
    return lines


def cells_table(results: list[dict]) -> list[str]:
    """Where each number comes from; failures in their own words. Cells that tuned stand in results.csv if they are done."""
    lines = ["| cell | seed | learning rate | run folder | state |", "|---|---|---|---|---|"]
    for result in results:
        cell = result["cell"]
        if cell.get("tuning") and "heldout" in result:
            continue
        state = (
            f"**failed**: {result['failed']}"
            if "failed" in result
            else "not run"
            if result.get("missing")
            else f"done, {role_of(result)}"
        )
        changed = " (with uncommitted changes)" if result.get("changed_files") else ""
        rate = f"{cell['learning_rate']:g}" if "learning_rate" in cell else "-"
        lines.append(f"| {result['name']} | {cell['seed']} | {rate} | {result.get('run', '-')} | {state}{changed} |")
    return [
        *lines,
        "",
        "The configuration of each cell is config.yaml in its folder; the same command makes the same run again. Short runs are in "
        "results.csv. A finalist lost to another learning rate of its arm.",
        "",
    ]


def trusted_entropies(folder: Path) -> list[str]:
    """From how many tokens on each entropy can be trusted, as tools/measure_entropy.py found."""
    path = folder / "entropy" / "summary.md"
    if not path.is_file():
        return []
    _, marker, trusted = path.read_text(encoding="utf-8").partition("What can be trusted:")
    plot = "![Entropy by sample size](entropy.png)"
    return ["## Entropies", "", plot, "", marker + trusted.rstrip(), ""] if marker else []


def write_csv(path: Path, heads: Sequence[str], lines: Iterable[Sequence]) -> None:
    """Heads and lines."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows(lines)


def role_of(result: dict) -> str:
    """What a cell is for: the comparison, or a short or a full-length run that a learning rate was chosen by."""
    return "compared" if result["compared"] else "short" if result["cell"].get("tuning") else "finalist"


def head_of(result: dict) -> tuple:
    """Where a number is from: the values of CELL_COLUMNS."""
    cell = result["cell"]
    where = cell["arm"], cell["seed"], cell.get("learning_rate", ""), result.get("run", "")
    return result["name"], role_of(result), *where


def result_lines(results: list[dict]) -> Iterable[tuple]:
    """One for each number of each cell, and the state of those that have none."""
    for result in results:
        if "failed" in result or result.get("missing"):
            yield (*head_of(result), "state", "failed" if "failed" in result else "not run")
            continue
        values = {"heldout": result["heldout"], "seconds": result.get("seconds", "")}
        values |= values_of(result) if "measures" in result else {}
        for name, value in values.items():
            yield (*head_of(result), name, value)


def curve_lines(results: list[dict]) -> Iterable[tuple]:
    """One for each held-out measurement during training."""
    for result in results:
        for step, text, image in result.get("curve", ()):
            yield (*head_of(result), step, text, image)


def write_conflict(path: Path, folder: Path, results: list[dict]) -> None:
    """The lines of every cell's conflict profile."""
    lines, heads = [], ()
    for result in results:
        profile = folder / result["name"] / "conflict" / "conflict.csv"
        if "measures" in result and profile.is_file():
            with open(profile, encoding="utf-8", newline="") as file:
                heads, *own = csv.reader(file)
            lines += [(*head_of(result), *line) for line in own]
    write_csv(path, (*CELL_COLUMNS, *heads), lines)
