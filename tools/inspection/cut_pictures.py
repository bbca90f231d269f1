"""Loss by cropping to shapes, before encoding: shares in words, and images with the cropped parts veiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from model.shapes import ASPECT_RATIOS, Framing, grids_of, nearest_shape, share_lost, size_word

if TYPE_CHECKING:
    from PIL import Image

CELL = 128  # pixels of the longer side of a picture on a sheet
MUCH = 0.25  # share of a picture's area that is seldom lost without what it shows
VEIL = (255, 64, 64)


def losses(sizes: Sequence[tuple[int, int]], framing: Framing) -> list[tuple[str, str]]:
    """Cropping loss of these images, of (width, height) each, with the framing and with the usual sets."""
    if not sizes:
        return []
    verb = "white laid beside it, share of the area" if framing.pad else "cut off a picture, share of the area"
    square, side = framing.grids[:1], framing.grids[0][0]
    lines = [(f"{verb}, --shapes as asked", _spread([lost(size, framing) for size in sizes]))]
    if len(framing.grids) > 1:
        named = "square", Framing(square, framing.downsample, framing.pad)
    else:  # with one pixel per code no tokenizer's square is known: plain ratios
        fine = side if framing.downsample > 1 else 480
        named = "aspect", Framing(grids_of(fine, ASPECT_RATIOS), 1, framing.pad)
    lines.append((f"the same with --shapes {named[0]}", _spread([lost(size, named[1]) for size in sizes])))
    counted = Counter(nearest_shape(framing.grids, *size) for size in sizes)
    if len(framing.grids) > 1:
        counts = (f"{size_word(framing.grids[number])} {count:,}" for number, count in sorted(counted.items()))
        lines.append(("shapes, rows*columns of codes", ", ".join(counts)))
    return lines


def lost(size: tuple[int, int], framing: Framing) -> float:
    """Share of an image's area that is cropped; with padding, the white share of the result."""
    return share_lost(*size, *framing.sizes[nearest_shape(framing.grids, *size)])


def thumbnail(picture: Image.Image) -> Image.Image:
    """RGB image with its longer side CELL pixels."""
    from PIL import Image

    from tokenization.contact_sheet import inside

    return picture.resize(inside(picture.size, CELL), Image.Resampling.BOX, reducing_gap=2.0)


def cut_picture(picture: Image.Image, size: tuple[int, int], framing: Framing) -> tuple[Image.Image, str]:
    """A thumbnail with its cropped part, or its padding, veiled; and its label, of the image's own `size`.

    The sides of a thumbnail are rounded, which moves the share of a long picture by a percent and may change its shape.
    """
    from PIL import Image

    from model.hf.pictures_uni_x import kept_box

    number = nearest_shape(framing.grids, *size)
    wide, high = framing.sizes[number]
    share = share_lost(*size, wide, high)
    shape = f"{size_word(framing.grids[number])}, " if len(framing.grids) > 1 else ""
    if framing.pad:
        scale = max(picture.width / wide, picture.height / high)
        whole = Image.new("RGB", (round(wide * scale), round(high * scale)), _veiled((255, 255, 255)))
        whole.paste(picture, ((whole.width - picture.width) // 2, (whole.height - picture.height) // 2))
        return whole, f"{shape}{share:.0%} white"
    left, top, right, bottom = (round(edge) for edge in kept_box(*picture.size, wide, high))
    veiled = Image.blend(picture, Image.new("RGB", picture.size, VEIL), 0.6)
    veiled.paste(picture.crop((left, top, right, bottom)), (left, top))
    return veiled, f"{shape}{share:.0%} cut off"


def _veiled(colour: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple((2 * one + 3 * veil) // 5 for one, veil in zip(colour, VEIL, strict=True))


def _spread(shares: list[float]) -> str:
    ordered: list[Any] = sorted(shares)
    much = sum(share > MUCH for share in shares)
    return (
        f"median {ordered[len(ordered) // 2]:.1%}, most {ordered[-1]:.1%}, mean {sum(ordered) / len(ordered):.1%}; "
        f"over {MUCH:.0%} of {much:,} of {len(ordered):,} pictures"
    )
