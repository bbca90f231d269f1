"""Contact sheets: grids of labelled images."""

from __future__ import annotations

from collections.abc import Sequence

LABEL_HEIGHT, MARGIN, LINE = 30, 8, 12


def contact_sheet(pictures: Sequence, labels: Sequence[str], columns: int = 0, scale_to: int = 128):
    """PIL pictures and a label for each -> one PIL RGB picture; each is `scale_to` pixels wide, unsmoothed.

    Where they have several ratios of sides, the longer side of each is `scale_to`, and it stands in the middle of its cell.
    columns 0 chooses a sheet about as wide as it is high. Characters that the built-in font lacks are shown as their
    code points, so that a label is never a row of boxes.
    """
    import math

    from PIL import Image, ImageDraw, ImageFont

    columns = columns or max(1, math.ceil(math.sqrt(len(pictures) * 1.3)))
    columns = min(columns, max(1, len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    alike = len({picture.width / picture.height for picture in pictures}) == 1
    height = round(scale_to * pictures[0].height / pictures[0].width) if alike else scale_to
    cell_width, cell_height = scale_to + MARGIN, height + LABEL_HEIGHT + MARGIN
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 1)
    for number, (picture, label) in enumerate(zip(pictures, labels)):
        left = MARGIN + number % columns * cell_width
        top = MARGIN + number // columns * cell_height
        wide, high = (scale_to, height) if alike else inside(picture.size, scale_to)
        at = left + (scale_to - wide) // 2, top + (height - high) // 2
        sheet.paste(picture.convert("RGB").resize((wide, high), Image.Resampling.NEAREST), at)
        draw.rectangle((at[0] - 1, at[1] - 1, at[0] + wide, at[1] + high), outline="#cccccc")
        for line, text in enumerate(_wrap(_printable(label), scale_to, draw, font)):
            draw.text((left, top + height + 2 + line * LINE), text, fill="black", font=font)
    return sheet


def inside(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height that fit `size` into a longer side of `side`."""
    width, height = (max(1, round(length * side / max(size))) for length in size)
    return width, height


def _printable(text: str) -> str:
    return "".join(char if ord(char) < 0x250 else f"U+{ord(char):04X} " for char in text)


def _wrap(text: str, width: int, draw, font) -> list[str]:
    """Wrap a label to at most two lines; the rest becomes an ellipsis."""
    lines, line = [], ""
    for word in text.split():
        candidate = f"{line} {word}".strip()
        if line and draw.textlength(candidate, font=font) > width:
            lines.append(line)
            candidate = word
        line = candidate
    lines.append(line)
    if len(lines) > 2:
        lines = [lines[0], lines[1] + "..."]
    while lines and draw.textlength(lines[-1], font=font) > width and len(lines[-1]) > 4:
        lines[-1] = lines[-1].removesuffix("...")[:-1] + "..."
    return lines
