"""Plots of a study's report: held-out losses by step, and conflict by layer."""

from __future__ import annotations

import statistics
from pathlib import Path

from tokenization.files import save_picture
from tools.analysis.conflict_profile import plot, read
from tools.reports.figure_layout import fit_with_legend
from tools.study.plan import WORDS, Preset


def curves(results: list[dict], path: Path) -> None:
    """Held-out losses by step on the mixed rows: the mean over seeds of each arm, and single seeds faintly.

    The first measurement, of a model that knows nothing, is left out: beside it the arms would all be one line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 2.8), dpi=110)
    for number, arm in enumerate(WORDS):
        runs = [
            result["curve"][1:]
            for result in results
            if "measures" in result and result["compared"] and result["cell"]["arm"] == arm
        ]
        for axis, column, modality in ((axes[0], 1, "text"), (axes[1], 2, "image")):
            for run in runs:
                axis.plot([p[0] for p in run], [p[column] for p in run], color=f"C{number}", alpha=0.3, linewidth=0.8)
            if runs:
                mean = [statistics.mean(run[i][column] for run in runs) for i in range(min(map(len, runs)))]
                axis.plot(
                    [p[0] for p in runs[0]][: len(mean)], mean, color=f"C{number}", linewidth=1.4, label=WORDS[arm]
                )
            axis.set(title=f"held-out {modality} loss", xlabel="step", ylabel="nats a token")
            axis.grid(alpha=0.3)
    fit_with_legend(figure, axes[0])
    save_picture(figure, path)
    pyplot.close(figure)


def conflict_plot(folder: Path, preset: Preset, results: list[dict], path: Path) -> None:
    """Conflict profiles of all arms with shared weights, first seed."""
    profiles = {}
    for result in results:
        place = folder / result["name"] / "conflict"
        if result["compared"] and result["cell"]["seed"] == preset.seeds[0] and place.is_dir():
            profiles[WORDS[result["cell"]["arm"]]] = read(place)[0]
    plot(profiles, path, {words: f"C{number}" for number, words in enumerate(WORDS.values())})
