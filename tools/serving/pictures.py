"""Images of requests, from a data URI or an upload to the image tokenizer's input; and image files of answers."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence

from PIL import Image

from model.shapes import Framing, nearest_shape
from tokenization.frames import FURTHER
from tokenization.preprocess import RejectedImage, open_image, preprocess
from tools.serving.api_error import ApiError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # formats of browsers; every further decoder is attack surface
DATA_URI = re.compile(r"data:image/(png|apng|jpe?g|pjpeg|webp|gif)(;[\w.+-]+=[^;,\s]*)*;base64,", re.IGNORECASE)
SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")

Size = tuple[int, int]  # width and height in pixels


def bytes_of_data_uri(uri: str, param: str) -> bytes:
    """File of a data URI. Raises ApiError 400; URLs are never fetched."""
    head = DATA_URI.match(uri[:256])
    if not head:
        known = uri[:5].lower() == "data:"
        what = "is not base64 of a PNG, JPEG, WebP or GIF" if known else "is an address, and nothing is fetched"
        raise ApiError(400, f"{param} {what}: send data:image/png;base64,...", param, "invalid_image_url")
    try:
        return base64.b64decode("".join(uri[head.end() :].split()), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{param} is not valid base64", param, "invalid_base64") from None


def picture_of(data: bytes, framing: Framing, max_pixels: int, param: str) -> Image.Image:
    """Image file as RGB in the nearest shape. Raises ApiError 400 for an unreadable image."""
    try:
        picture = open_image(data, max_pixels, FORMATS)
        if FURTHER in picture.info:
            message = f"{param}: it has several frames, of which one alone would be read: send that one"
            raise ApiError(400, message, param, "several_frames")
        return preprocess(picture, framing)
    except RejectedImage as error:
        raise ApiError(400, f"{param}: {error}", param, error.reason) from None


def asked_size(text: str | None, max_pixels: int) -> Size | None:
    """WIDTHxHEIGHT as numbers; None for `auto`, the model's own size. Raises ApiError 400."""
    if text in (None, "auto"):
        return None
    found = SIZE.fullmatch(text)
    if not found:
        raise ApiError(400, f"size is {text[:40]!r}: give WIDTHxHEIGHT in pixels, or auto", "size", "invalid_value")
    width, height = int(found[1]), int(found[2])
    if width * height > max_pixels:
        raise ApiError(400, f"size is {text}, more than the limit of {max_pixels:,} pixels", "size", "invalid_value")
    return width, height


def nearest(shapes: Sequence[Size], wanted: Size | None) -> int | None:
    """Number of that of `shapes` with the aspect ratio nearest to the requested one; None without a request."""
    return None if wanted is None else nearest_shape([(high, wide) for wide, high in shapes], *wanted)


def fitted(drawn: Size, wanted: Size | None) -> Size:
    """Largest size within `wanted` with the generated aspect ratio: no cropping, no distortion."""
    if wanted is None:
        return drawn
    scale = min(wanted[0] / drawn[0], wanted[1] / drawn[1])
    return max(1, round(drawn[0] * scale)), max(1, round(drawn[1] * scale))


def file_of(picture: Image.Image, size: Size, kind: str = "png", quality: int = 100) -> bytes:
    """Encoded file of an image, resized if needed. `quality` counts for JPEG and WebP."""
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    options = {} if kind == "png" else {"quality": quality}
    picture.save(file, format=kind.upper(), **options)
    return file.getvalue()
