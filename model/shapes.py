"""Image shapes of a dataset: the syntax of `--shapes`, and the sets of grids.

All grids of a set have about as many codes as the square one, so that rows, memory and time do not depend on the shape.
The number of a shape fits into four bits (`tokenization.sample`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.hf.shapes_uni_x import Grid, nearest_shape, shape_of, share_lost, size_word
from pretrain.system.errors import UserError

__all__ = [
    "ASPECT_RATIOS",
    "FITS",
    "MOST_SHAPES",
    "Framing",
    "Grid",
    "framing_of",
    "grid_of_ratio",
    "grids_from",
    "grids_of",
    "nearest_shape",
    "recorded",
    "shape_of",
    "share_lost",
    "size_word",
]

MOST_SHAPES = 16
FITS = ("crop", "pad")
"""What is done to a picture that has no shape of the set: its middle is cut out, or white is laid beside it."""

ASPECT_RATIOS = ((4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (7, 3), (3, 7), (3, 1), (1, 3))
"""Width to height of `--shapes aspect`, beside the square. The first six are those of cameras and screens, which lose
next to nothing; the others keep what any picture up to 3:1 loses below 14 % of its area."""


@dataclass(frozen=True)
class Framing:
    """How images of any size are fitted to the image tokenizer's shapes.

    `grids` are the shapes of a set, `downsample` the pixels a code, `pad` whether white is laid beside a picture in place of
    cutting it.
    """

    grids: tuple[Grid, ...]
    downsample: int
    pad: bool = False

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height in pixels of each shape."""
        return [(columns * self.downsample, rows * self.downsample) for rows, columns in self.grids]


def framing_of(vq: Mapping[str, Any]) -> Framing:
    """Framing of a dataset, from the section `vq` of its manifest or job; square images where it names no shapes."""
    side = vq["image_size"] // vq["downsample"]
    grids = tuple((int(rows), int(columns)) for rows, columns in vq.get("shapes", [(side, side)]))
    return Framing(grids, vq["downsample"], vq.get("fit", "crop") == "pad")


def recorded(framing: Framing) -> dict[str, Any]:
    """Framing as a manifest records it; nothing for center-cropped squares, as in older datasets."""
    shapes = {"shapes": [list(grid) for grid in framing.grids]} if len(framing.grids) > 1 else {}
    return shapes | ({"fit": "pad"} if framing.pad else {})


def grids_from(text: str, side: int) -> tuple[Grid, ...]:
    """Grids of `--shapes TEXT` for squares of `side` codes a side, the square first.

    `square` is that alone, `aspect` the set of ASPECT_RATIOS, and `4:3,3:4,2:1` these ratios of width to height beside
    the square. Raises UserError.
    """
    if text == "square":
        return ((side, side),)
    if text == "aspect":
        return grids_of(side, ASPECT_RATIOS)
    ratios = []
    for word in text.split(","):
        first, _, last = word.strip().partition(":")
        if not (first.isdecimal() and last.isdecimal() and int(first) and int(last)):
            raise UserError(
                f"--shapes {text}: {word.strip()!r} is no ratio: give square, aspect, or ratios of width to height as 4:3,3:4"
            )
        ratios.append((int(first), int(last)))
    grids = grids_of(side, ratios)
    if len(grids) > MOST_SHAPES:
        raise UserError(
            f"--shapes {text}: {len(grids)} shapes with the square, the limit is {MOST_SHAPES}: leave some out"
        )
    return grids


def grids_of(side: int, ratios: Sequence[tuple[int, int]]) -> tuple[Grid, ...]:
    """The square of `side` x `side` codes, then the grid of each aspect ratio (width to height), without duplicates."""
    return tuple(dict.fromkeys([(side, side), *(grid_of_ratio(side, width / height) for width, height in ratios)]))


def grid_of_ratio(side: int, ratio: float) -> Grid:
    """Grid of about side * side codes whose width is about `ratio` times its height.

    Of the few whole numbers around the exact ones, those whose ratio and number of codes are off by the least in all, both
    as logarithms. A ratio below 1 gives the grid of its inverse, turned.
    """
    if ratio < 1:
        rows, columns = grid_of_ratio(side, 1 / ratio)
        return columns, rows
    height, width = side / math.sqrt(ratio), side * math.sqrt(ratio)

    def away(grid: Grid) -> float:
        rows, columns = grid
        return abs(math.log(columns / rows / ratio)) + abs(math.log(rows * columns / side**2))

    tall = [max(1, math.floor(height) + step) for step in (0, 1)]
    wide = [max(1, math.floor(width) + step) for step in (0, 1)]
    return min(((row, column) for row in tall for column in wide), key=lambda grid: (round(away(grid), 9), grid))
