"""From a decoded picture to the square RGB picture that an image tokenizer sees. Imports PIL and numpy only."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image, ImageOps


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """The picture as `size` x `size` RGB: upright, on white, its short side scaled to `size`, its middle kept.

    In this order: EXIF orientation is applied; transparency is laid over white; palettes, greys, CMYK and 16-bit greys
    become 8-bit RGB (colour profiles are ignored); the short side is scaled to `size` by Lanczos and the centre square
    is cut out, both rounded as Chameleon's image tokenizer rounds. `image` itself is not changed.

    Raises ValueError for floating-point pictures, whose white is not defined, and for pixel formats that Pillow cannot
    convert.
    """
    image = to_rgb(upright(image))
    width, height = image.size
    scale = size / min(width, height)
    scaled_width, scaled_height = round(scale * width), round(scale * height)
    left, top = (scaled_width - size) // 2, (scaled_height - size) // 2
    # only the square that is kept is scaled: a strip of 1 x 1,000,000 pixels would otherwise become a giant
    box = (
        left * width / scaled_width,
        top * height / scaled_height,
        min((left + size) * width / scaled_width, width),
        min((top + size) * height / scaled_height, height),
    )
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned and mirrored as its EXIF orientation says; unreadable EXIF counts as none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # pictures from the web often carry broken EXIF around sound pixels
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB, whatever is transparent showing white. Raises ValueError as `fit_square` does."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white is not defined")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion would clip at 255 instead of scaling; its mode I is 16-bit data in 32 bits
        greys = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((greys * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    picture = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if picture.mode == "RGB":
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def pixels_of(images: list[Image.Image]) -> np.ndarray:
    """Pixels float32 [b, 3, H, W] in -1..1 of pictures of one size, contiguous in this order.

    Their order in memory matters: torch 2.13's GroupNorm sums channels-last input so that rounding is a hundred times
    larger on a CPU, and depends on the number of threads.
    """
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return array.transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(127.5) - np.float32(1)


def images_of(pixels: np.ndarray) -> list[Image.Image]:
    """RGB pictures of pixels float [b, 3, H, W]; what lies outside -1..1 is clamped."""
    array = ((pixels.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in array]
