"""Conflict profile: the conflict of each matrix and layer, as CSV, JSON, plot and text.

Other tools read it.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.layer_kinds import KINDS
from pretrain.system.errors import UserError
from pretrain.system.words import shown
from tokenization.files import save_picture, write_text
from tools.reports.figure_layout import fit_with_legend

PARTS = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "o_proj": "attention",
    "gate_proj": "ffn",
    "up_proj": "ffn",
    "down_proj": "ffn",
}
NUMBERS = ("conflict", "low", "high", "between", "halves", "noise_free")
COLUMNS = ("layer", "kind", "met_by", "matrix", *NUMBERS)


@dataclass(frozen=True)
class Line:
    """One matrix of one layer, or all matrices of its attention, its MLP, or the whole layer taken as one."""

    layer: int  # number from 0
    kind: str
    met_by: str  # tokens that use these weights: both, text or vision
    matrix: str  # q_proj ... down_proj, attention, ffn, layer
    conflict: float
    low: float
    high: float
    between: float
    halves: float
    noise_free: float


def met_by(kind: str, matrix: str, is_vision: bool) -> str:
    """Modalities whose tokens use a matrix of a layer of `kind`."""
    if is_vision:
        return "vision"
    place = "mlp" if PARTS[matrix] == "ffn" else "self_attention"
    return "both" if KINDS[kind].met_by_both(f"{place}.{matrix}") else "text"


def estimates(config: ModelConfig, grams: dict, seed: int = 0) -> list[Line]:
    """Profile lines, layer by layer, from Hugging Face names -> Gram matrices (float64 [2 * blocks, 2 * blocks])."""
    from pretrain.conflict.estimates import estimate

    grouped: dict[tuple, Any] = defaultdict(lambda: 0)
    for name, gram in grams.items():
        _, group, index, _, matrix, _ = name.split(".")
        kind = config.layer_kinds[int(index)]
        whose = met_by(kind, matrix, group == "vision_layers")
        for part in (matrix, PARTS[matrix], "layer"):
            grouped[int(index), kind, whose, part] = grouped[int(index), kind, whose, part] + gram
    order = (*PARTS, "attention", "ffn", "layer")
    keys = sorted(grouped, key=lambda key: (key[0], ("both", "text", "vision").index(key[2]), order.index(key[3])))
    return [Line(*key, **asdict(estimate(grouped[key], seed))) for key in keys]


def write(folder: Path, lines: list[Line], config: ModelConfig, settings: dict) -> None:
    """Write conflict.csv, conflict.json (with the settings), conflict.png and summary.md."""
    folder.mkdir(parents=True, exist_ok=True)
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, COLUMNS)
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    write_text(folder / "conflict.csv", content.getvalue())
    values = {"settings": settings, "model": config.to_dict(), "lines": [asdict(line) for line in lines]}
    write_text(folder / "conflict.json", json.dumps(values, indent=1) + "\n")
    write_text(folder / "summary.md", summary(lines, config, settings))
    plot({"": lines}, folder / "conflict.png")


def read(path: Path) -> tuple[list[Line], dict, dict]:
    """Read conflict.json, or the folder that it is in -> lines, settings, model config values. Raises UserError."""
    path = path / "conflict.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        lines = [Line(**line) for line in values["lines"]]
        for line in lines:
            for name in ("layer", *NUMBERS):
                value = getattr(line, name)
                if isinstance(value, bool) or not isinstance(value, int if name == "layer" else int | float):
                    raise ValueError(f"{name} is {shown(value)}")
        return lines, values["settings"], values["model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: is no conflict profile ({error.__class__.__name__}: {error}): give the folder that "
            f"tools/measure_conflict.py wrote"
        ) from None


def shared_lines(lines: list[Line], matrix: str) -> list[Line]:
    """Lines of weights shared by both modalities: the only ones with gradient conflict."""
    return [line for line in lines if line.met_by == "both" and line.matrix == matrix]


def summary(lines: list[Line], config: ModelConfig, settings: dict) -> str:
    """Settings and results in words and one table."""
    targets = settings["blocks"] * settings["targets"]
    words = [
        "# Gradient conflict between text and pictures",
        "",
        f"Checkpoint {settings['checkpoint']}; data {', '.join(settings['data'])}; text targets: {settings['text']}; "
        f"{targets} target tokens for each gradient, in {settings['blocks']} blocks; seed {settings['seed']}. "
        "Conflict is -(cosine between modalities - cosine between mixed halves), with a 95 % interval over blocks.",
        "",
    ]
    whole = shared_lines(lines, "layer")
    if not whole:
        return "\n".join(
            [*words, "No weight of this model is met by both modalities: there is nothing to be in conflict.", ""]
        )
    words += [
        "| layer | kind | attention | ffn | weights met by both | cosine without noise |",
        "|---|---|---|---|---|---|",
    ]
    for line in whole:
        cells = []
        for part in ("attention", "ffn", "layer"):
            one = [other for other in shared_lines(lines, part) if other.layer == line.layer]
            cells.append(f"{one[0].conflict:.3f} ({one[0].low:.3f} to {one[0].high:.3f})" if one else "-")
        words.append(f"| {line.layer} | {line.kind} | {' | '.join(cells)} | {line.noise_free:.3f} |")
    above = [str(line.layer) for line in whole if line.low > 0]
    mean = sum(line.conflict for line in whole) / len(whole)
    words += [
        "",
        f"Mean over these layers {mean:.3f}; intervals above 0: {', '.join(above) or 'none'}"
        + (f" of {len(whole)} layers." if above else "."),
        "",
    ]
    return "\n".join(words)


def plot(profiles: dict[str, list[Line]], path: Path, colours: dict[str, str] | None = None) -> None:
    """Plot conflict by layer, attention and MLP apart, with intervals; a colour for each named profile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 2.8), dpi=110, sharey=True)
    for axis, part in zip(axes, ("attention", "ffn")):
        for number, (name, lines) in enumerate(profiles.items()):
            shown = shared_lines(lines, part)
            if not shown:
                continue
            middle = [line.conflict for line in shown]
            bars = [[line.conflict - line.low for line in shown], [line.high - line.conflict for line in shown]]
            shift = 0.08 * (number - (len(profiles) - 1) / 2)
            axis.errorbar(
                [line.layer + shift for line in shown],
                middle,
                yerr=bars,
                fmt="o-",
                capsize=2,
                markersize=4,
                linewidth=1.2,
                label=name or None,
                color=(colours or {}).get(name),
            )
        axis.axhline(0, color="#999", linewidth=0.8)
        axis.set(title=f"{part}, weights met by both modalities", xlabel="layer")
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("conflict, 95 % interval")
    fit_with_legend(figure, axes[0])
    save_picture(figure, path)
    pyplot.close(figure)
