"""Appendix of the report: tuning, further differences, cells, and CSVs of all numbers."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenization.files import write_text
from tools.study.compare import Arms, differences, values_of
from tools.study.plan import ARMS, WORDS, Preset

CELL_COLUMNS = ("cell", "role", "arm", "seed", "learning_rate", "run")


def write_details(output: Path, folder: Path, preset: Preset, results: list[dict], arms: Arms) -> None:
    """Write details.md, results.csv, curves.csv, conflict.csv, and entropy.csv and .png where they were measured."""
    write_csv(output / "results.csv", (*CELL_COLUMNS, "measure", "value"), result_lines(results))
    write_csv(output / "curves.csv", (*CELL_COLUMNS, "step", "text_loss", "image_loss"), curve_lines(results))
    write_conflict(output / "conflict.csv", folder, results)
    if (folder / "entropy" / "summary.md").is_file():  # written last
        for name in ("entropy.csv", "entropy.png"):
            shutil.copyfile(folder / "entropy" / name, output / name)
    words = [
        f"# Details of the {preset.name} study",
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
    write_text(output / "details.md", "\n".join(words))


def tuning_table(preset: Preset, results: list[dict]) -> list[str]:
    """Held-out loss of each arm at each learning rate, and which arms were best at an end of the range."""
    tried: dict[str, dict[float, float]] = {}
    for result in results:
        cell = result["cell"]
        if "heldout" in result and cell["seed"] == preset.seeds[0] and cell["arm"] in ARMS:
            tried.setdefault(cell["arm"], {})[cell["learning_rate"]] = result["heldout"]
    if not tried:
        return []
    rates, at_end = sorted(preset.learning_rates), []
    lines = [f"| held-out loss at | {' | '.join(f'{rate:g}' for rate in rates)} |", "|---" * (len(rates) + 1) + "|"]
    for arm, found in tried.items():
        best = min(found, key=found.__getitem__)
        at_end += [WORDS[arm]] if best in (rates[0], rates[-1]) else []
        shown = [f"{found[rate]:.3f}" if rate in found else "-" for rate in rates]
        shown = [f"**{cell}**" if rate == best else cell for rate, cell in zip(rates, shown)]
        lines.append(f"| {WORDS[arm]} | {' | '.join(shown)} |")
    words = "Every arm is best between the ends of the range."
    if at_end:
        words = f"Best at an end of the range, so that a rate beyond it might be better still: {', '.join(at_end)}."
    return [*lines, "", f"Of {preset.steps} steps with the first seed. {words}", ""]


def cells_table(results: list[dict]) -> list[str]:
    """Source of each number; failures with their messages."""
    lines = ["| cell | seed | learning rate | run folder | state |", "|---|---|---|---|---|"]
    for result in results:
        cell = result["cell"]
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
        "The configuration of each cell is config.yaml in its folder; the same command makes the same run again. Tried: the arm was "
        "better at another learning rate.",
        "",
    ]


def trusted_entropies(folder: Path) -> list[str]:
    """Tokens from which on each entropy is trusted, by tools/measure_entropy.py."""
    path = folder / "entropy" / "summary.md"
    if not path.is_file():
        return []
    _, marker, trusted = path.read_text(encoding="utf-8").partition("What can be trusted:")
    plot = "![Entropy by sample size](entropy.png)"
    return ["## Entropies", "", plot, "", marker + trusted.rstrip(), ""] if marker else []


def write_csv(path: Path, heads: Sequence[str], lines: Iterable[Sequence]) -> None:
    """Write head and lines as CSV."""
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    writer.writerow(heads)
    writer.writerows(lines)
    write_text(path, content.getvalue())


def role_of(result: dict) -> str:
    """Role of a cell: the comparison, or a learning rate that was tried and not chosen."""
    return "compared" if result["compared"] else "tried"


def head_of(result: dict) -> tuple:
    """Source of a number: the values of CELL_COLUMNS."""
    cell = result["cell"]
    where = cell["arm"], cell["seed"], cell.get("learning_rate", ""), result.get("run", "")
    return result["name"], role_of(result), *where


def result_lines(results: list[dict]) -> Iterable[tuple]:
    """A line for each number of each cell, and the state of those without numbers."""
    for result in results:
        if "failed" in result or result.get("missing"):
            yield (*head_of(result), "state", "failed" if "failed" in result else "not run")
            continue
        values = {"heldout": result["heldout"], "seconds": result.get("seconds", "")}
        values |= values_of(result) if "measures" in result else {}
        for name, value in values.items():
            yield (*head_of(result), name, value)


def curve_lines(results: list[dict]) -> Iterable[tuple]:
    """A line for each held-out measurement during training."""
    for result in results:
        for step, text, image in result.get("curve", ()):
            yield (*head_of(result), step, text, image)


def write_conflict(path: Path, folder: Path, results: list[dict]) -> None:
    """Write the lines of every cell's conflict profile."""
    lines: list[tuple] = []
    heads: Sequence[str] = ()
    for result in results:
        profile = folder / result["name"] / "conflict" / "conflict.csv"
        if "measures" in result and profile.is_file():
            with open(profile, encoding="utf-8", newline="") as file:
                heads, *own = csv.reader(file)
            lines += [(*head_of(result), *line) for line in own]
    write_csv(path, (*CELL_COLUMNS, *heads), lines)
