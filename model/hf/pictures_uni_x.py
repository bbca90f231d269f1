"""Image preprocessing: from a decoded image to the RGB image that the image tokenizer sees. Imports PIL and numpy
only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .shapes_uni_x import nearest_shape


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Resize and center-crop an image to `size` x `size` RGB, by `fit`."""
    return fit(image, [(size, size)])


def fit(image: Image.Image, sizes: Sequence[tuple[int, int]], pad: bool = False) -> Image.Image:
    """Fit an image to that of `sizes` (width, height) with the nearest aspect ratio: RGB, upright, on white.

    In this order: EXIF orientation is applied; transparency is laid over white; palettes, greys, CMYK and 16-bit greys
    become 8-bit RGB (colour profiles are ignored); the picture is scaled by Lanczos so that it just covers the size, and what
    juts out on two sides is cut off, both rounded as Chameleon's image tokenizer rounds. With `pad` it is scaled to stay
    within the size, and white is laid on two sides. `image` itself is not changed.

    Raises ValueError for floating-point pictures, whose white is not defined, and for pixel formats that Pillow cannot
    convert.
    """
    image = to_rgb(upright(image))
    width, height = image.size
    wide, high = sizes[nearest_shape([(high, wide) for wide, high in sizes], width, height)]
    if pad:
        scale = min(wide / width, high / height)
        inner = min(wide, max(1, round(scale * width))), min(high, max(1, round(scale * height)))
        whole = image.resize(inner, Image.Resampling.LANCZOS)
        if inner == (wide, high):
            return whole
        padded = Image.new("RGB", (wide, high), "white")
        padded.paste(whole, ((wide - inner[0]) // 2, (high - inner[1]) // 2))
        return padded
    # crop before scaling: a strip of 1 x 1,000,000 pixels would otherwise become huge
    return image.resize((wide, high), Image.Resampling.LANCZOS, box=kept_box(width, height, wide, high))


def kept_box(width: int, height: int, wide: int, high: int) -> tuple[float, float, float, float]:
    """Crop box (left, top, right, bottom), in pixels of an image of `width` x `height`, for `wide` x `high`."""
    scale = max(wide / width, high / height)
    scaled_width, scaled_height = round(scale * width), round(scale * height)
    left, top = (scaled_width - wide) // 2, (scaled_height - high) // 2
    return (
        left * width / scaled_width,
        top * height / scaled_height,
        min((left + wide) * width / scaled_width, width),
        min((top + high) * height / scaled_height, height),
    )


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; unreadable EXIF counts as none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # images from the web often have broken EXIF but intact pixels
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB, with transparency on white. Raises ValueError as `fit` does."""
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
    """Images of one size as contiguous float32 [b, 3, H, W] in -1..1.

    Their order in memory matters: torch 2.13's GroupNorm sums channels-last input so that rounding is a hundred times
    larger on a CPU, and depends on the number of threads.
    """
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return array.transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(127.5) - np.float32(1)


def images_of(pixels: np.ndarray) -> list[Image.Image]:
    """Pixels float [b, 3, H, W], clamped to -1..1, as RGB images."""
    array = ((pixels.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1)
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in array]
