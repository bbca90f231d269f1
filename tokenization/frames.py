"""Files of several pictures, of which the first is read: animations, pages, and the views of stereo cameras."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from PIL import Image, ImageFile

FURTHER = "further_frames"
"""Key in a decoded image's `info`, there if its file has further frames that are left out."""

VIEWS = "Multi-Frame Image"
"""How Pillow's names begin for the panoramas, stereo pairs and angles in an MPO."""
SUBFILE_TYPE, COPY_OR_MASK = 254, 0b101
"""TIFF tag of a page's kind, and its bits for a smaller copy of another page and for a mask."""


def has_further_frames(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether a file's bytes hold pictures beyond `image`, the first, that its reader would miss.

    Not counted: previews, gain and depth maps in an MPO, smaller copies and masks in a TIFF. What follows the first picture and
    cannot be read counts. `image` stays at its frame.
    """
    try:
        if image.format == "MPO":
            entries = getattr(image, "mpinfo", {}).get(0xB002, [])
            return any(entry["Attribute"]["MPType"].startswith(VIEWS) for entry in entries[1:])
        if image.format == "TIFF":
            return getattr(image, "is_animated", False) and _has_further_page(data)
        if image.format == "GIF":  # looking for a second frame moves the file, so in one of its own
            with Image.open(io.BytesIO(data), formats=["GIF"]) as other:
                return bool(getattr(other, "is_animated", False))
        return getattr(image, "n_frames", 1) > 1
    except Exception:  # Pillow's decoders raise many kinds of errors for damaged data
        return True


def _has_further_page(data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as other:
        page = 1
        while True:
            try:
                other.seek(page)
            except EOFError:
                return False
            if not getattr(other, "tag_v2", {}).get(SUBFILE_TYPE, 0) & COPY_OR_MASK:
                return True
            page += 1


def merged(counts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sum of {"pictures", "example"} of several documents or parts: number of pictures, and the first one's file.

    Empty where there are none, as each of `counts` may be.
    """
    some = [each for each in counts if each]
    return {"pictures": sum(each["pictures"] for each in some), "example": some[0]["example"]} if some else {}


def in_words(count: dict[str, Any]) -> str:
    """One line for what `merged` made; empty if there is nothing to say."""
    if not count:
        return ""
    pictures = "1 picture has" if count["pictures"] == 1 else f"{count['pictures']:,} pictures have"
    return f"{pictures} further frames or pages, which are left out, as {count['example'][:100]}"
