"""One way from a picture file to square RGB: the colours, the geometry, and what is refused before it costs memory."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokenization.preprocess import MAX_PIXELS, RejectedImage, open_image, preprocess

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "RGBa")


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixel(image: Image.Image, size: int = 8) -> tuple[int, ...]:
    return preprocess(image, size).getpixel((size // 2, size // 2))


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 40),
    orientation=st.integers(0, 9),
)
def test_the_result_is_always_a_square_of_rgb(mode, width, height, size, orientation):
    image = Image.new(mode, (width, height))
    image.getexif()[0x0112] = orientation
    result = preprocess(image, size)
    assert (result.mode, result.size) == ("RGB", (size, size))
    assert image.size == (width, height)


def test_transparency_shows_white():
    half_red = Image.new("RGBA", (20, 20), (255, 0, 0, 128))
    assert np.abs(np.subtract(pixel(half_red), (255, 127, 127))).max() <= 1
    assert pixel(Image.new("LA", (20, 20), (0, 0))) == (255, 255, 255)


def test_the_transparent_colour_of_a_palette_and_of_rgb_shows_white():
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert pixel(open_image(encoded(palette))) == (0, 0, 255)
    assert pixel(open_image(encoded(palette, transparency=1))) == (255, 255, 255)
    blue = Image.new("RGB", (20, 20), (0, 0, 255))
    assert pixel(open_image(encoded(blue, transparency=(0, 0, 255)))) == (255, 255, 255)


def test_grey_cmyk_and_16_bit_keep_their_brightness():
    assert pixel(Image.new("L", (20, 20), 100)) == (100, 100, 100)
    assert pixel(Image.new("CMYK", (20, 20), (0, 255, 255, 0))) == (255, 0, 0)
    sixteen = Image.fromarray(np.full((20, 20), 100 * 257, dtype=np.uint16))
    for image in (sixteen, open_image(encoded(sixteen)), open_image(encoded(sixteen, "TIFF")), sixteen.convert("I")):
        assert pixel(image) == (100, 100, 100)


@pytest.mark.parametrize("mode", ["F", "La"])
def test_pixels_without_a_defined_colour_are_refused(mode):
    with pytest.raises(RejectedImage) as refused:
        preprocess(Image.new(mode, (20, 20)), 8)
    assert refused.value.reason == "undecodable_picture"


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the stored left is the top
    turned = np.asarray(preprocess(open_image(encoded(image, exif=exif)), 20).convert("L"))
    upright = np.asarray(preprocess(image, 20).convert("L"))
    assert upright[:, 2].min() > 200 and upright[:, -3].max() < 50
    assert turned[2].min() > 200 and turned[-3].max() < 50


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(open_image(data)) == (255, 0, 0)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 40), (41, 97), (17, 30), (200, 33)])
def test_it_is_a_lanczos_resize_of_the_short_side_and_a_centre_crop(width, height):
    noise = np.random.default_rng(0).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    scale = 32 / min(width, height)
    scaled = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    left, top = (scaled.width - 32) // 2, (scaled.height - 32) // 2
    expected = np.asarray(scaled.crop((left, top, left + 32, top + 32))).astype(int)
    assert np.abs(np.asarray(preprocess(image, 32)) - expected).max() <= 2


def test_a_long_thin_strip_needs_no_giant_in_between():
    strip = Image.new("RGB", (1, 2_000_000), "red")
    assert preprocess(strip, 64).getpixel((32, 32)) == (255, 0, 0)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (10_000, 10_000), (20_000, 20_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_by_the_header(width, height):
    assert width * height > MAX_PIXELS
    with pytest.raises(RejectedImage) as refused:
        open_image(bomb(width, height))
    assert refused.value.reason == "too_many_pixels"


def test_what_is_no_sound_picture_says_what_it_is(tmp_path: Path):
    sound = encoded(Image.effect_noise((64, 64), 50))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    cases = {
        "text.png": (b"a cat\n", "not_a_picture"),
        "empty.png": (b"", "not_a_picture"),
        "script.png": (postscript, "not_a_picture"),
        "half.png": (sound[: len(sound) // 2], "undecodable_picture"),
        "flipped.png": (sound[:200] + bytes([sound[200] ^ 255]) + sound[201:], "undecodable_picture"),
        "half.jpg": (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:700], "undecodable_picture"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RejectedImage) as refused:
            open_image(tmp_path / name)
        assert (refused.value.reason, name in str(refused.value)) == (reason, True)
    for missing in (tmp_path / "no.png", tmp_path, tmp_path / "text.png" / "inner.png"):
        with pytest.raises(RejectedImage) as refused:
            open_image(missing)
        assert refused.value.reason == "missing_file"


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 500))
def test_damaged_files_end_in_a_picture_or_a_rejection(position, value, cut):
    data = bytearray(encoded(Image.effect_noise((16, 16), 50)))
    data[position % len(data)] = value
    try:
        image = open_image(bytes(data[: max(1, len(data) - cut // 4)]), max_pixels=10_000)
    except RejectedImage:
        return
    assert preprocess(image, 8).size == (8, 8)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_rejected(data):
    with pytest.raises(RejectedImage) as refused:
        open_image(b"\x00" + data)
    assert refused.value.reason == "not_a_picture"


def png(depth: int, colour_type: int, pixel: bytes, transparent: tuple[int, ...]) -> bytes:
    """A PNG of 8 x 8 pixels, a row of which has `pixel` over and over, with a tRNS chunk of these samples."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + pixel * (8 * depth * (3 if colour_type == 2 else 1) // 8 // len(pixel))
    header = struct.pack(">IIBBBBB", 8, 8, depth, colour_type, 0, 0, 0)
    trns = struct.pack(f">{len(transparent)}H", *transparent)
    rest = ((b"IHDR", header), (b"tRNS", trns), (b"IDAT", zlib.compress(row * 8)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in rest)


@pytest.mark.parametrize(
    ("depth", "colour_type", "sample", "colour", "opaque"),
    [
        (1, 0, b"\x00", (0,), (0, 0, 0)),
        (2, 0, b"\x55", (1,), (85, 85, 85)),
        (4, 0, b"\x33", (3,), (51, 51, 51)),
        (8, 0, b"\x33", (0x33,), (51, 51, 51)),
        (16, 0, b"\x01\x02", (0x0102,), (1, 1, 1)),
        (8, 2, b"\x01\x02\x03", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_the_transparent_colour_of_a_png_of_any_depth_shows_white(depth, colour_type, sample, colour, opaque):
    assert pixel(open_image(png(depth, colour_type, sample, colour))) == (255, 255, 255)
    other = tuple(part ^ 1 for part in colour)
    assert pixel(open_image(png(depth, colour_type, sample, other))) == opaque


def test_sixteen_bits_of_rgb_are_never_transparent_by_mistake():
    """Pillow keeps the high bytes: where these leave open which pixels are meant, the picture is refused by name."""
    dark = b"\x00\x02\x00\x04\x00\x06"
    assert pixel(open_image(png(16, 2, dark, (0x0100, 4, 6)))) == (0, 0, 0)
    with pytest.raises(RejectedImage, match="16-bit RGB with a transparent colour"):
        open_image(png(16, 2, dark, (1, 4, 6)))
