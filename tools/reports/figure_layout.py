"""Plot layout without overlap."""

from __future__ import annotations


def fit_with_legend(figure, axis) -> None:
    """Make panels as large as the figure allows, with the legend of `axis` below, where there are several lines.

    As many names stand in a row as the figure is wide. Called last: what is added later is not made room for.
    """
    handles, labels = axis.get_legend_handles_labels()
    room = 0.0
    if len(labels) > 1:
        for columns in range(len(labels), 0, -1):
            legend = figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False, fontsize=8)
            box = legend.get_window_extent()
            if box.width <= figure.bbox.width or columns == 1:
                break
            legend.remove()
        room = box.height / figure.bbox.height
    figure.tight_layout(rect=(0, room, 1, 1))
