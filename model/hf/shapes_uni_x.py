"""Image shapes: grids of codes, their size words, and the nearest shape. Imports the standard library only.

A grid is (rows, columns) of codes. The first of a set is the square one. Before a picture of a model that knows several,
its grid stands as text, `rows*columns`, then `<|vision_start|>`: Emu3 marks sizes with the same words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Grid = tuple[int, int]  # rows and columns of codes


def size_word(grid: Grid) -> str:
    """Size words: text before an image of this grid."""
    return f"{grid[0]}*{grid[1]}"


def nearest_shape(grids: Sequence[Grid], width: float, height: float) -> int:
    """Number of the grid with the aspect ratio nearest to `width` x `height`; the first of equals."""
    away = [abs(math.log(columns * height / (rows * width))) for rows, columns in grids]
    return away.index(min(away))


def shape_of(asked: object, grids: Sequence[Grid], most: float = 1.2) -> int:
    """Number of a requested shape: `rows*columns`, [rows, columns], or an aspect ratio as `4:3` or `1.5`.

    The nearest grid is taken for a ratio. Raises ValueError for a grid that is not in the set, for what is neither, and for a
    ratio that no shape is near: that of the nearest is off by more than a factor of `most`.
    """
    known = ", ".join(map(size_word, grids))
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        asked = "*".join(map(str, asked)) if len(asked) == 2 else f"{list(asked)}*"
    text = str(asked).strip().lower().replace("x", "*")
    words = [size_word(grid) for grid in grids]
    if "*" in text:
        if text not in words:
            raise ValueError(f"shape {asked!r} is none of rows*columns of this model: {known}")
        return words.index(text)
    first, colon, last = text.partition(":")
    try:
        width, height = float(first), float(last) if colon else 1.0
        sound = 0 < width < math.inf and 0 < height < math.inf
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"shape {asked!r}: give a ratio of width to height, as 4:3, or one of {known}")
    number = nearest_shape(grids, width, height)
    rows, columns = grids[number]
    if abs(math.log(columns * height / (rows * width))) > math.log(most):
        raise ValueError(f"shape {asked!r} is far from all that this model draws: {known} (rows*columns)")
    return number


def share_lost(width: float, height: float, to_width: float, to_height: float) -> float:
    """Share of an image's area that a center crop to another aspect ratio removes."""
    ratio = (width * to_height) / (height * to_width)
    return 1.0 - min(ratio, 1.0 / ratio)


def trailing_shape(ids: Sequence[int], words: Sequence[Sequence[int]]) -> int | None:
    """Number of the size words that `ids` end with, the longest of several; None without any."""
    found, length = None, 0
    for number, word in enumerate(words):
        if len(word) > length and list(ids[-len(word) :]) == list(word):
            found, length = number, len(word)
    return found


def next_ids(words: Sequence[Sequence[int]], beginning: Sequence[int], after: int) -> set[int]:
    """Ids that may follow `beginning`, the start of size words; `after` where they are complete."""
    fitting: Iterable[Sequence[int]] = (word for word in words if list(word[: len(beginning)]) == list(beginning))
    return {word[len(beginning)] if len(word) > len(beginning) else after for word in fitting}
