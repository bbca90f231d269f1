"""Legends under panels: whatever they name, they hide nothing and end inside the figure."""

from __future__ import annotations

import matplotlib
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot

from tools.reports.figure_layout import fit_with_legend
from tools.study.plan import WORDS


@pytest.mark.parametrize(
    ("size", "names"),
    [((10, 2.8), list(WORDS.values())), ((4, 3.4), list(WORDS.values())), ((4, 3.4), [f"n={n}" for n in range(1, 7)])],
    ids=["every arm of the study", "in a narrow figure", "short names"],
)
def test_a_legend_hides_nothing_and_is_inside_the_figure(size, names):
    figure, axis = pyplot.subplots(figsize=size, dpi=110)
    for name in names:
        axis.plot([0, 1], label=name)
    axis.set_xlabel("step")
    fit_with_legend(figure, axis)
    figure.canvas.draw()
    (legend,) = figure.legends
    box, label = legend.get_window_extent(), axis.xaxis.label.get_window_extent()
    assert [text.get_text() for text in legend.get_texts()] == names
    assert box.y1 <= label.y0 and box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert axis.get_window_extent().height > 0.3 * figure.bbox.height
    pyplot.close(figure)


@pytest.mark.parametrize("names", [[], ["alone"]])
def test_one_line_needs_no_legend(names):
    figure, axis = pyplot.subplots()
    for name in names:
        axis.plot([0, 1], label=name)
    fit_with_legend(figure, axis)
    assert not figure.legends
    pyplot.close(figure)
