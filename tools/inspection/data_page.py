"""HTML pages of documents and rows: texts and images in order, roles, and the loss mask."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenization.files import write_atomically

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; } td, th { padding: .25em .9em; border-bottom: 1px solid #ddd; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.document { border: 1px solid #ccc; border-radius: 6px; padding: .6em .8em; margin: .8em 0; overflow-wrap: anywhere; }
.about { color: #666; font-size: 13px; } .role { color: #666; font-size: 12px; margin-right: .4em; }
.text { white-space: pre-wrap; background: #eee; } .learned { background: #cdeec9; } .cut { color: #a00; }
img { max-width: 160px; border: 3px solid #ccc; vertical-align: middle; margin: 2px; image-rendering: pixelated; }
img.learned { border-color: #49a942; } img.wide { max-width: 100%; border: none; }
"""
LONGEST_TEXT = 2000
"""Characters of a text that are shown; the middle of longer ones is left out."""


@dataclass(frozen=True)
class Shown:
    """A text, or a PIL image, on a page; `learned` is None without a loss mask."""

    content: Any
    role: str = ""
    learned: bool | None = None


def document(about: str, parts: Iterable[Shown]) -> str:
    """A framed document: a title line, and its parts in order."""
    body = "".join(map(_part, parts))
    return f'<div class="document"><div class="about">{html.escape(about)}</div>{body}</div>'


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table; numbers are right-aligned and integers have thousands separators. It scrolls by itself on narrow screens."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(map(_cell, line)) + "</tr>" for line in lines)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write a self-contained page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'
    write_atomically(path, page.encode("utf-8", "backslashreplace"))


def embedded(picture: Any, label: str = "", css: str = "") -> str:
    """A PIL image as an img element."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="{css}" alt="{html.escape(label)}" src="data:image/png;base64,{data}">'


def _part(part: Shown) -> str:
    css = "learned" if part.learned else ""
    role = f'<span class="role">{html.escape(part.role)}</span>' if part.role else ""
    if not isinstance(part.content, str):
        return role + embedded(part.content, part.role, css)
    text = part.content
    if len(text) > LONGEST_TEXT:
        half = LONGEST_TEXT // 2
        text = f"{text[:half]} [... {len(text) - LONGEST_TEXT:,} characters ...] {text[-half:]}"
    return f'{role}<span class="text {css}">{html.escape(text)}</span> '


def _cell(value: Any) -> str:
    if isinstance(value, (int, float)):
        return (
            f'<td class="number">{value:,}</td>' if isinstance(value, int) else f'<td class="number">{value:,.3f}</td>'
        )
    return f"<td>{html.escape(str(value))}</td>"
