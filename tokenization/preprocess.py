"""Image preprocessing from a file to the RGB image that an image tokenizer sees; the same for shards, training and
editing.

`open_image` refuses what is not a sound picture, `preprocess` does the geometry and the colours. Nothing else in this
project decodes or resizes pictures, but for the geometry that exports share
(`model/hf/pictures_uni_x.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from model.hf.pictures_uni_x import fit
from model.shapes import Framing
from pretrain.system.errors import UserError
from tokenization.frames import FURTHER, has_further_frames

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels: 192 MB as RGB. A bomb of 20,000 x 20,000 is refused by its header."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What may come from outside. Pillow reads more, among it EPS, for which it would start Ghostscript."""


def check_side(side: int) -> None:
    """Raises UserError for a side of squares, of --image-size, that have more pixels than a picture that is read."""
    if side * side > MAX_PIXELS:
        raise UserError(
            f"--image-size {side}: is larger than any picture that is read, {MAX_PIXELS:,} pixels: give a smaller one"
        )


class RejectedImage(UserError):
    """An image that cannot be used. `reason` is the word that rejects are counted by, `detail` says what is wrong."""

    def __init__(self, reason: str, detail: str, path: Path | None = None):
        super().__init__(f"{path}: {detail}" if path else detail)
        self.reason = reason
        self.detail = detail


def open_image(
    source: str | Path | bytes,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = FORMATS,
    draft: int = 0,
    check: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Decode an image from its path or its file's bytes; of an animation, the first frame, with FURTHER in its `info`.

    No other decoder than those of `formats` is tried. `draft`: a JPEG is decoded at a half, a quarter or an eighth where both sides
    still have so many pixels, which is faster and changes colours a little; 0 decodes as it is. `check` is called with width and
    height as the file has them, before anything is decoded.

    Raises RejectedImage with reason `missing_file`, `not_a_picture`, `too_many_pixels` (known from the header, so that
    nothing is decoded) or `undecodable_picture` (truncated or damaged). Errors of the disk or network stay OSError.
    """
    path = None if isinstance(source, bytes) else Path(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise RejectedImage("missing_file", f"cannot be opened: {error.strerror}", path) from error
    try:
        picture: Image.Image
        image = picture = Image.open(io.BytesIO(data), formats=[name for name in formats if name in known_formats()])
        width, height = image.size
        if width * height > max_pixels:
            raise RejectedImage(
                "too_many_pixels",
                f"{width} x {height} pixels, the limit is {max_pixels:,} in all; scale it down first",
                path,
            )
        if check:
            check(width, height)
        depth = png_depth(image)
        if draft and image.format in ("JPEG", "MPO"):
            image.draft(image.mode, (draft, draft))
        image.load()
        picture = with_transparency(image, depth)
        if has_further_frames(image, data):
            picture.info[FURTHER] = True
    except RejectedImage:
        raise
    except UnidentifiedImageError as error:
        detail = "the file is empty" if not data else f"not a picture ({', '.join(formats)})"
        raise RejectedImage("not_a_picture", detail, path) from error
    except Image.DecompressionBombError as error:
        detail = f"Pillow takes it for a bomb, the limit is {max_pixels:,} pixels; scale it down first"
        raise RejectedImage("too_many_pixels", detail, path) from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors for damaged data
        detail = f"truncated or damaged: {one_line(error)}"
        raise RejectedImage("undecodable_picture", detail, path) from error
    return picture


def png_depth(image: ImageFile.ImageFile) -> str:
    """Mode and bits per sample of a PNG before loading, in Pillow's names (`L;2`, `RGB;16B`); else empty."""
    if image.format != "PNG" or not image.tile:
        return ""
    mode = image.tile[0][3]
    return mode if isinstance(mode, str) else str(mode[0]) if mode else ""


def with_transparency(image: Image.Image, depth: str) -> Image.Image:
    """The loaded image with its tRNS colour as transparency, which Pillow 13 gets wrong for samples of 2, 4 and 16
    bits.

    PNG compares it with samples as they are stored. Pillow scales 2 and 4 bits to 8 but not the colour, loses it for
    16-bit greys, and of 16-bit RGB keeps the high bytes. Raises RejectedImage where these do not say which pixels are meant.
    """
    colour = image.info.get("transparency")
    if colour is None or depth not in ("L;2", "L;4", "I;16B", "RGB;16B"):
        return image
    if depth in ("L;2", "L;4"):
        bits = int(depth[-1])
        if 0 <= colour < 1 << bits:
            image.info["transparency"] = colour * 255 // ((1 << bits) - 1)
        else:
            del image.info["transparency"]
        return image
    samples = np.asarray(image)
    if depth == "I;16B":
        greys = Image.fromarray(((samples.astype(np.int64).clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8))
        opaque = Image.fromarray(np.where(samples == colour, 0, 255).astype(np.uint8))
        grey = Image.merge("LA", (greys, opaque))
        grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
        grey.format = image.format
        return grey
    high = np.array([part >> 8 for part in colour], np.uint8)
    if (samples == high).all(axis=-1).any():
        raise RejectedImage(
            "undecodable_picture",
            "16-bit RGB with a transparent colour, of which Pillow reads high bytes only; save it with an alpha channel",
        )
    del image.info["transparency"]
    return image


def preprocess(image: Image.Image, framing: Framing | int) -> Image.Image:
    """Resize an image to RGB in the nearest shape of `framing`, or to a square of so many pixels, by `fit`, which
    exported models use too.

    Raises RejectedImage (`undecodable_picture`) for floating-point pictures, whose white is not defined, and for pixel
    formats that Pillow cannot convert.
    """
    try:
        if isinstance(framing, int):
            return fit(image, [(framing, framing)], False)
        return fit(image, framing.sizes, framing.pad)
    except ValueError as error:
        raise RejectedImage("undecodable_picture", one_line(error)) from error


@cache
def known_formats() -> tuple[str, ...]:
    """FORMATS without those that this build of Pillow lacks."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def one_line(error: Exception) -> str:
    """An exception's message on one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
