"""Moved copies: the picture is elsewhere in its frame, its texts are the same, and a second run changes nothing."""

from __future__ import annotations

import io
import itertools
import tarfile

import numpy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.commands import CommandServer, assert_refused
from tests.pretrain.tiny_run import TinyData
from tests.tokenization.test_demo_corpus import members
from tokenization.shift_pictures import move, offset


def png(pixels: numpy.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_copies_go_everywhere_but_to_the_middle():
    places = {offset(f"picture-{i}", 1) for i in range(500)}
    assert places == {place for place in itertools.product((-1, 0, 1), repeat=2) if place != (0, 0)}


@given(right=st.integers(-6, 6), down=st.integers(-6, 6))
def test_a_moved_picture_is_the_same_elsewhere(right, down):
    pixels = numpy.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=numpy.uint8)
    moved = numpy.asarray(Image.open(io.BytesIO(move(png(pixels), right, down))))
    expected = numpy.zeros_like(pixels)
    for y, x in itertools.product(range(5), range(6)):
        if 0 <= y - down < 5 and 0 <= x - right < 6:
            expected[y, x] = pixels[y - down, x - right]
    assert numpy.array_equal(moved, expected)


def test_every_sample_has_its_copies(commands: CommandServer, tiny_data: TinyData, tmp_path):
    command = ["tokenization/shift_pictures.py", "--input", str(tiny_data.corpus / "train/webdataset"), "--copies", "2"]
    assert commands.run(*command, "--output", str(tmp_path / "a")).code == 0
    assert commands.run(*command, "--output", str(tmp_path / "b")).code == 0
    originals = members(tiny_data.corpus / "train")
    (tmp_path / "side").mkdir()
    for name in ("a", "b"):
        (tmp_path / "side" / "webdataset").unlink(missing_ok=True)
        (tmp_path / "side" / "webdataset").symlink_to(tmp_path / name)
        copies = members(tmp_path / "side")
        assert len(copies) == 2 * len(originals)
        keys = [name.partition(".")[0] for name in copies]
        assert [key for key, _ in itertools.groupby(keys)] == list(dict.fromkeys(keys))  # as readers need them
        for name, data in originals.items():
            key, _, suffix = name.partition(".")
            for copy in (1, 2):
                assert (copies[f"{key}-moved{copy}.{suffix}"] == data) is (suffix == "json")
    tars = [sorted((tmp_path / name).glob("*.tar")) for name in ("a", "b")]
    assert [path.read_bytes() for path in tars[0]] == [path.read_bytes() for path in tars[1]]
    assert "is there already" in commands.run(*command, "--output", str(tmp_path / "a")).out


def test_bad_input_is_named(commands: CommandServer, tmp_path):
    command = ["tokenization/shift_pictures.py", "--input", str(tmp_path), "--output", str(tmp_path / "out")]
    assert_refused(commands.run(*command), "no .tar", "folder of WebDataset tars")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x.png"), io.BytesIO())
    assert_refused(commands.run(*command), "a.tar", "make the tar again")
    assert_refused(commands.run(*command, "--by", "0"), "--by 0", "at least 1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
