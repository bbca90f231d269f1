"""Report of an editing model as one HTML page, with its results as JSON and PNG beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenization.files import save_picture, write_text
from tools.reports import report_page
from tools.reports.edit_figures import (
    CANDIDATES,
    CEILING,
    INSIDE,
    NO_SOURCE,
    OUTSIDE,
    RESULT,
    EditRow,
    distance_table,
    verdicts,
)
from tools.reports.text_table import table

SHOWN = 12  # edits of each kind on the page
ON_SHEET = 4  # edits of each kind on the contact sheet


def write(output: Path, figures: dict, metrics: list[dict], rows: Sequence[EditRow], candidates: Mapping) -> None:
    """Write report.html, figures.json, curves.png and edits.png to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "figures.json", json.dumps(figures, indent=1) + "\n")
    report_page.curves(metrics, output / "curves.png")
    sheet(rows, candidates, output / "edits.png")
    parts = [
        "<h1>Demo: one model that edits pictures by an instruction</h1>",
        f"<p>{html.escape(intro(figures))}</p>",
        "<h2>Figures</h2>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in verdicts(figures["kinds"])) + "</ul>",
        "<p>Mean absolute difference to the target, 0 to 255, with 95 % intervals over things. "
        + " ".join(f"<b>{html.escape(name)}</b>: {html.escape(what)}." for name, what in CANDIDATES.items())
        + "</p>",
    ]
    for where in (INSIDE, OUTSIDE):
        parts += [f"<h3>{where.capitalize()} the changed region</h3>", as_html(distance_table(figures["kinds"], where))]
    parts += [
        "<h2>Losses</h2>",
        f'<img class="wide" alt="losses by step" src="{report_page.embed_file(output / "curves.png")}">',
        '<p class="note">Below, left to right: the source picture, the result, the target as its codes decode, the target '
        "itself, and what the model makes of the instruction alone. The edits of a kind are its first, not chosen by "
        "hand.</p>",
    ]
    for kind in dict.fromkeys(row.kind for row in rows):
        at = [number for number, row in enumerate(rows) if row.kind == kind][:SHOWN]
        cells = [
            report_page.cell([*strip_of(rows[i], i, candidates), candidates[NO_SOURCE][i]], rows[i].instruction)
            for i in at
        ]
        parts += [f"<h2>{html.escape(kind.capitalize())}</h2>", report_page.grid(cells, 405)]
    parts.append('<p class="note">Pictures: OpenMoji, CC BY-SA 4.0, and changes of them.</p>')
    page = report_page.page("Editing report", parts)
    write_text(output / "report.html", page)


def intro(figures: dict) -> str:
    """Description of the measurement, in a sentence or two."""
    kinds = figures["kinds"]
    side = "things that were held out" if figures["side"] == "heldout" else "training things"
    return (
        f"A small Uni-X was asked for {kinds['all']['edits']} edits of {len(kinds) - 1} kinds, of {side}, with guidance "
        f"{figures['guidance']:g} for the instruction and {figures['image_guidance']:g} for the source picture, at "
        f"temperature {figures['temperature']:g}, seed {figures['seed']}. An edit changes "
        f"{kinds['all']['changed_pixels']:.0%} of the pixels and {figures['codes_that_an_edit_changes']:.0%} of the codes."
    )


def print_figures(figures: dict) -> None:
    """Print the results."""
    print(intro(figures))
    for where in (INSIDE, OUTSIDE):
        print(f"\nmean absolute difference to the target, 0 to 255, {where} the changed region:")
        print("\n".join(table(distance_table(figures["kinds"], where))))
    print()
    for line in verdicts(figures["kinds"]):
        print(f"  {line}")


def as_html(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, head first, as an HTML table."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    lines = [f"<tr>{head}</tr>"]
    for first, *rest in rows[1:]:
        cells = "".join(f'<td class="number">{html.escape(cell)}</td>' for cell in rest)
        lines.append(f"<tr><td>{html.escape(first)}</td>{cells}</tr>")
    return '<div class="scroll"><table>' + "".join(lines) + "</table></div>"


def strip_of(row: EditRow, number: int, candidates: Mapping) -> list:
    """Images of an edit: source, result, reconstructed target, target."""
    return [row.source, candidates[RESULT][number], candidates[CEILING][number], row.target]


def sheet(rows: Sequence[EditRow], candidates: Mapping, path: Path) -> None:
    """Images of the first edits of each kind side by side, as one PNG."""
    from PIL import Image

    from tokenization.contact_sheet import contact_sheet

    strips, labels = [], []
    for kind in dict.fromkeys(row.kind for row in rows):
        for number in [i for i, row in enumerate(rows) if row.kind == kind][:ON_SHEET]:
            pictures = strip_of(rows[number], number, candidates)
            width, height = pictures[0].size
            strip = Image.new("RGB", (4 * width + 6, height), "#cccccc")
            for place, picture in enumerate(pictures):
                strip.paste(picture, (place * (width + 2), 0))
            strips.append(strip)
            labels.append(rows[number].instruction)
    save_picture(contact_sheet(strips, labels, ON_SHEET, 4 * 64 + 6), path)
