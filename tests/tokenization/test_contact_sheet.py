"""Contact sheets: every picture in its cell, every label printable and within its width."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw, ImageFont

from tokenization import contact_sheet as module
from tokenization.contact_sheet import LABEL_HEIGHT, MARGIN, contact_sheet

COLOURS = ["red", "lime", "blue", "yellow", "cyan", "magenta", "black"]


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), COLOURS[i % len(COLOURS)]) for i in range(count)]


@pytest.mark.parametrize("count, columns, grid", [(7, 3, (3, 3)), (7, 0, (4, 2)), (1, 0, (1, 1)), (2, 5, (2, 1))])
def test_every_picture_is_in_its_cell(count, columns, grid):
    sheet = contact_sheet(pictures(count), [""] * count, columns=columns, scale_to=40)
    width, height = 40 + MARGIN, 40 + LABEL_HEIGHT + MARGIN
    assert sheet.size == (grid[0] * width + MARGIN, grid[1] * height + MARGIN)
    for number in range(count):
        left, top = MARGIN + number % grid[0] * width, MARGIN + number // grid[0] * height
        cell = sheet.crop((left, top, left + 40, top + 40))
        expected = Image.new("RGB", (1, 1), COLOURS[number % len(COLOURS)]).getpixel((0, 0))
        assert cell.getcolors() == [(1600, expected)]  # enlarged, unsmoothed


def test_no_pictures_make_an_empty_sheet():
    assert [colour for _, colour in contact_sheet([], []).getcolors()] == [(255, 255, 255)]


def test_labels_are_written_and_differ():
    sheets = [contact_sheet(pictures(1), [label]).tobytes() for label in ("", "cat", "dog", "红心", "红")]
    assert len(set(sheets)) == 5


def test_what_the_font_lacks_is_shown_as_code_points():
    assert module._printable("über 红A") == "über U+7EA2 A"


LABELS = ["a", "one two three four five six seven eight", "x" * 200, "红" * 30, "a " + "x" * 90]


@pytest.mark.parametrize("label", LABELS)
def test_labels_stay_in_their_cell(label):
    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(11)
    lines = module._wrap(module._printable(label), 60, draw, font)
    assert 1 <= len(lines) <= 2 and all(draw.textlength(line, font=font) <= 60 for line in lines)
    assert "".join(lines).replace(" ", "").startswith(label.replace(" ", "")[:1] if label[0] < "\u0250" else "U+")
    if len(module._printable(label)) > 30:
        assert lines[-1].endswith("...")
