"""Report of a demo run as one self-contained HTML page, with its results as JSON and PNG beside it."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

from tokenization.files import save_picture, write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .3em .9em; border-bottom: 1px solid #ddd; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } .scroll td, .scroll th { padding: .3em .5em; font-size: 13px; }
.scroll td { white-space: nowrap; } .scroll th:not(:first-child) { text-align: right; }
.grid { display: grid; gap: 12px; }
.cell { border: 1px solid #ddd; border-radius: 6px; padding: 6px; font-size: 12px; line-height: 1.3; }
.pair { display: flex; gap: 4px; margin-bottom: 4px; }
.pair img { width: 74px; height: 74px; image-rendering: pixelated; border: 1px solid #eee; }
.note { color: #666; font-size: 13px; } img.wide { max-width: 100%; }
"""


def write(output: Path, figures: dict, metrics: list[dict], pictures: dict, run: Path) -> None:
    """Write report.html, figures.json, curves.png and seen.png to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "figures.json", json.dumps(figures, indent=1) + "\n")
    curves(metrics, output / "curves.png")
    pairs_sheet(pictures["seen"], output / "seen.png")
    parts = [
        "<h1>Demo: one model that draws names and names pictures</h1>",
        f"<p>{_intro(figures)}</p>",
        "<h2>Figures</h2>",
        figures_table(figures),
        "<h2>Losses</h2>",
        f'<img class="wide" alt="losses by step" src="{embed_file(output / "curves.png")}">',
        "<h2>Names that were trained on</h2>",
        '<p class="note">Left the real picture, as its codes decode; right what the model drew for the name. Below, the '
        "training picture that the drawn one is nearest to.</p>",
        grid([cell([real, drawn], name, f"nearest: {near}") for name, real, drawn, near in pictures["seen"]]),
        "<h2>Names that were held out</h2>",
        '<p class="note">Nothing of this kind was drawn in training; left the real picture, right the drawn one.</p>',
        grid([cell([real, drawn], name) for name, real, drawn in pictures["unseen"]]),
        "<h2>Pictures put into words</h2>",
        '<p class="note">In bold what the model says; below the English name of the picture.</p>',
    ]
    for side, entries in pictures["captions"].items():
        parts.append(f"<h3>{html.escape(side.capitalize())} pictures</h3>")
        parts.append(grid([cell([real], f"real: {name}", answer, bold=True) for name, real, answer in entries]))
    parts += [
        "<h2>What the codes keep</h2>",
        '<p class="note">Held-out pictures: left as they are, right after encoding to codes and back.</p>',
        grid([cell([real, decoded], name) for name, real, decoded in pictures["reconstructions"]]),
    ]
    for sheet in sorted((run / "samples").glob("*.png"))[-1:]:
        parts += [
            f"<h2>Last samples drawn in training ({sheet.stem})</h2>",
            f'<img class="wide" alt="samples" src="{embed_file(sheet)}">',
        ]
    parts.append('<p class="note">Pictures: OpenMoji, CC BY-SA 4.0. Names: Unicode CLDR.</p>')
    write_text(output / "report.html", page("Demo report", parts))


def page(title: str, parts: list[str]) -> str:
    """HTML fragments as a self-contained page."""
    body = "\n".join(parts)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'


def rows_of(figures: dict) -> list[tuple[str, str]]:
    """Results as (what, value) in words."""
    drawn = figures["drawn_names"]
    rows = [
        ("training names drawn", f"{drawn['prompts']}"),
        ("guidance, temperature, seed", f"{drawn['guidance']:g}, {drawn['temperature']:g}, {drawn['seed']}"),
        ("of these nearest to a picture of that name", f"{drawn['nearest_has_the_name']} ({drawn['rate']:.1%})"),
        ("by chance", f"{drawn['chance']:.3%} (of {drawn['training_pictures']} distinct training pictures)"),
        ("times chance", f"{drawn['times_chance']:.0f}"),
        ("of these with that name among the five nearest", f"{drawn['one_of_five_nearest_has_the_name']}"),
        ("place of the right picture by distance, median", f"{drawn['median_place_of_the_right_picture']:g}"),
    ]
    for side, found in figures["captions"].items():
        rows.append(
            (
                f"{side} pictures whose caption is one of their names",
                f"{found['right']} of {found['pictures']} ({found['rate']:.1%})",
            )
        )
        rows.append(
            (
                "different captions among these; right with the best single caption for all",
                f"{found['different']}; {found['best_of_one_for_all']:.2%}",
            )
        )
    for name, values in figures["losses"].items():
        label = name.replace("heldout/", "held-out ").replace("train/", "training ").replace("loss_", "")
        unit = "code" if name.endswith("image") else "token"
        rows.append(
            (
                f"{label} loss, step {values['first_step']} -> step {values['last_step']}",
                f"{values['first']:.3f} -> {values['last']:.3f} nats a {unit}",
            )
        )
    kept = figures["reconstruction_psnr"]
    rows.append(("image tokenizer on held-out pictures", f"{kept['psnr']:.2f} dB PSNR ({kept['pictures']} pictures)"))
    return rows


def print_figures(figures: dict) -> None:
    """Print the results."""
    for what, value in rows_of(figures):
        print(f"  {what}: {value}")


def figures_table(figures: dict) -> str:
    """Results as an HTML table."""
    lines = [f'<tr><td>{html.escape(w)}</td><td class="number">{html.escape(v)}</td></tr>' for w, v in rows_of(figures)]
    return "<table>" + "".join(lines) + "</table>"


def curves(metrics: list[dict], path: Path) -> None:
    """Plot losses by step, text and image apart: lines for training, dots for held-out rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.4), dpi=110)
    for axis, modality in zip(axes, ("image", "text")):
        for side, style, label in (("train", "-", "training"), ("heldout", "o-", "held out")):
            name = f"{side}/loss_{modality}"
            points = [(line["step"], line[name]) for line in metrics if name in line]
            if points:
                axis.plot(*zip(*points), style, label=label, linewidth=1.2, markersize=4)
        axis.set(title=f"{modality} loss", xlabel="step", ylabel=f"nats a {'code' if modality == 'image' else 'token'}")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(frameon=False)
    figure.tight_layout()
    save_picture(figure, path)
    pyplot.close(figure)


def pairs_sheet(entries: list, path: Path) -> None:
    """Real and generated images side by side, as one PNG."""
    from PIL import Image

    from tokenization.contact_sheet import contact_sheet

    pairs = []
    for _, real, drawn, _ in entries:
        pair = Image.new("RGB", (real.width * 2 + 2, real.height), "#cccccc")
        pair.paste(real, (0, 0))
        pair.paste(drawn, (real.width + 2, 0))
        pairs.append(pair)
    save_picture(contact_sheet(pairs, [name for name, *_ in entries], 6, 195), path)


def _intro(figures: dict) -> str:
    drawn = figures["drawn_names"]
    return (
        f"A small Uni-X was trained on OpenMoji pictures and their names. Drawn for {drawn['prompts']} training names, "
        f"its pictures are nearest to a picture of that name {drawn['times_chance']:.0f} times as often as chance."
    )


def grid(cells: list[str], width: int = 165) -> str:
    """Cells side by side, each at least `width` pixels wide."""
    columns = f"grid-template-columns: repeat(auto-fill, minmax({width}px, 1fr))"
    return f'<div class="grid" style="{columns}">' + "".join(cells) + "</div>"


def cell(pictures: list, label: str, second: str = "", bold: bool = False) -> str:
    """Images in a row over a label, and a second line below or, in bold, above it."""
    images = "".join(f'<img alt="{html.escape(label)}" src="{_embed(picture)}">' for picture in pictures)
    lines = [html.escape(label)]
    if second:
        lines.insert(0 if bold else 1, f"<b>{html.escape(second)}</b>" if bold else html.escape(second))
    return f'<div class="cell"><div class="pair">{images}</div>{"<br>".join(lines)}</div>'


def _embed(picture) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def embed_file(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
