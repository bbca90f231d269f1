"""Pictures of clients: from a data URI or an upload to the square that the image tokenizer sees."""

from __future__ import annotations

import base64
import binascii
import re

from PIL import Image

from tokenization.preprocess import RejectedImage, open_image, preprocess
from tools.serving.api_error import ApiError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # what browsers send; each decoder more is more that strangers can try
DATA_URI = re.compile(r"data:image/(png|jpeg|jpg|webp|gif);base64,")


def bytes_of_data_uri(uri: str, param: str) -> bytes:
    """The file in a data URI. Raises ApiError 400; nothing is ever fetched from an address."""
    head = DATA_URI.match(uri[:64])
    if not head:
        known = uri.startswith("data:")
        what = "is not base64 of a PNG, JPEG, WebP or GIF" if known else "is an address, and nothing is fetched"
        raise ApiError(400, f"{param} {what}: send data:image/png;base64,...", param, "invalid_image_url")
    try:
        return base64.b64decode(uri[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{param} is not valid base64", param, "invalid_base64") from None


def square_of(data: bytes, size: int, max_pixels: int, param: str) -> Image.Image:
    """The picture of a file as `size` x `size` RGB. Raises ApiError 400 for whatever is no sound picture."""
    try:
        return preprocess(open_image(data, max_pixels, FORMATS), size)
    except RejectedImage as error:
        raise ApiError(400, f"{param}: {error}", param, error.reason) from None
