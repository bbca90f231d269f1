"""Sets of shapes: grids of about equal numbers of codes, their words, and which is nearest."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.hf.pictures_uni_x import fit, fit_square, kept_box
from model.hf.shapes_uni_x import next_ids, trailing_shape
from model.shapes import (
    ASPECT_RATIOS,
    Framing,
    framing_of,
    grid_of_ratio,
    grids_from,
    nearest_shape,
    recorded,
    shape_of,
    share_lost,
    size_word,
)
from pretrain.system.errors import UserError


@pytest.mark.parametrize("side", [8, 16, 24, 32, 64])
def test_shapes_have_about_as_many_codes_as_the_square_and_any_picture_up_to_3_to_1_loses_little(side: int):
    grids = grids_from("aspect", side)
    assert grids[0] == (side, side) and len(grids) == len(ASPECT_RATIOS) + 1 == len(set(grids))
    assert all(abs(rows * columns / side**2 - 1) < 0.1 for rows, columns in grids)
    assert {(columns, rows) for rows, columns in grids} == set(grids)  # each lying one has its upright one
    framing = Framing(grids, 16)
    for ratio in numpy.geomspace(1 / 3, 3, 101):
        assert share_lost(ratio, 1, *framing.sizes[nearest_shape(grids, ratio, 1)]) < 0.14


@given(st.integers(1, 64), st.floats(0.2, 5))
def test_a_ratio_and_its_inverse_give_turned_grids(side: int, ratio: float):
    rows, columns = grid_of_ratio(side, ratio)
    assert rows >= 1 and columns >= 1
    if abs(math.log(ratio)) > 1e-6:
        assert grid_of_ratio(side, 1 / ratio) in [(columns, rows), grid_of_ratio(side, 1 / (1 / (1 / ratio)))]


def test_words_of_the_flag():
    assert grids_from("square", 32) == ((32, 32),)
    assert grids_from("1:1,4:3,3:4,4:3", 32) == ((32, 32), (28, 37), (37, 28))
    assert grids_from("aspect", 1) == ((1, 1),)
    for wrong in ("", "round", "4:3,", "4:0", "-4:3", "4/3", "aspect,4:3"):
        with pytest.raises(UserError, match="give square, aspect, or ratios"):
            grids_from(wrong, 32)
    with pytest.raises(UserError, match="17 shapes with the square, the limit is 16"):
        grids_from(",".join(f"{width}:16" for width in range(17, 33)), 64)


def test_manifests_say_nothing_of_cut_squares():
    square = Framing(((4, 4),), 8)
    assert recorded(square) == {} and framing_of({"image_size": 32, "downsample": 8}) == square
    for framing in (Framing(grids_from("4:3", 4), 8), Framing(((4, 4),), 8, pad=True)):
        assert framing_of({"image_size": 32, "downsample": 8, **recorded(framing)}) == framing


def test_a_shape_by_name():
    grids = grids_from("aspect", 32)
    for said, expected in (
        ("28*37", (28, 37)),
        ("28x37", (28, 37)),
        ([28, 37], (28, 37)),
        ("4:3", (28, 37)),
        ("1.3", (28, 37)),
        ("1", (32, 32)),
        ("5:2", (21, 49)),
        ("1920:1080", (24, 43)),
    ):
        assert grids[shape_of(said, grids)] == expected
    for wrong, message in (
        ("9*9", "none of rows"),
        ("wide", "give a ratio"),
        ("0:1", "give a ratio"),
        ("nan", "give a ratio"),
        ("5:1", "far from all"),
        ([3], "none of rows"),
        ("", "give a ratio"),
    ):
        with pytest.raises(ValueError, match=message):
            shape_of(wrong, grids)
    with pytest.raises(ValueError, match="far from all"):
        shape_of("3:1", ((8, 8),))


def test_size_words_among_ids():
    words = [list(map(ord, size_word(grid))) for grid in ((2, 3), (12, 3), (12, 30))]
    ids = list(map(ord, "a picture 12*3"))
    assert trailing_shape(ids, words) == 1  # the longest, not 2*3
    assert trailing_shape(ids[:-1], words) is None and trailing_shape([], words) is None
    assert next_ids(words, [], 99) == {ord("2"), ord("1")}
    assert next_ids(words, list(map(ord, "12*3")), 99) == {99, ord("0")}
    assert next_ids(words, list(map(ord, "12*30")), 99) == {99}


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10), st.booleans())
def test_a_picture_takes_the_nearest_shape_and_nothing_is_pulled_out_of_it(
    width: int, height: int, seed: int, pad: bool
):
    framing = Framing(grids_from("aspect", 4), 8, pad)
    image = Image.fromarray(numpy.random.default_rng(seed).integers(0, 99, (height, width, 3), dtype=numpy.uint8))
    found = fit(image, framing.sizes, pad)
    size = framing.sizes[nearest_shape(framing.grids, width, height)]
    assert found.size == size and found.mode == "RGB"
    white = (numpy.asarray(found) == 255).all(-1)
    if pad:  # white in whole columns or whole rows only, none of them through the middle
        assert not white[(size[1] - 1) // 2, (size[0] - 1) // 2]
        assert (white.all(0) | ~white.any(0) | white.all(1).any()).all()
        return
    assert not white.any()
    left, top, right, bottom = kept_box(width, height, *size)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert left == 0 or top == 0  # two sides are whole
    if min(width, height) > 40:
        assert abs((right - left) * (bottom - top) / (width * height) - 1 + share_lost(width, height, *size)) < 0.1


def test_one_shape_is_the_square_of_before():
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=numpy.uint8))
    assert fit(image, [(32, 32)]).tobytes() == fit_square(image, 32).tobytes()
    scaled = image.resize((45, 32), Image.Resampling.LANCZOS).crop((6, 0, 38, 32))  # 70 * 32 / 50 = 44.8
    assert numpy.abs(numpy.asarray(fit_square(image, 32)).astype(int) - numpy.asarray(scaled)).max() <= 2
