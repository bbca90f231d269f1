"""Moved copies: the picture is elsewhere in its frame, its texts are the same, and a second run changes nothing."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.commands import CommandServer, assert_refused
from tests.pretrain.tiny_run import TinyData
from tokenization.readers import open_corpus
from tokenization.shift_pictures import move, offset


def documents(path: Path) -> dict:
    """Everything that shard_images would read there, by id."""
    corpus = open_corpus(path)
    found = {}
    for file in corpus.files:
        with corpus.open(file) as opened:
            found |= {item.id: item for _, item in corpus.read(opened, 0)}
    return found


def pixels(document) -> numpy.ndarray:
    (picture,) = document.pictures
    data = picture.data if isinstance(picture.data, bytes) else Path(picture.data).read_bytes()
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return numpy.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def test_copies_go_everywhere_but_to_the_middle():
    places = {offset(f"picture-{i}", 1) for i in range(500)}
    assert places == {place for place in itertools.product((-1, 0, 1), repeat=2) if place != (0, 0)}


@given(right=st.integers(-6, 6), down=st.integers(-6, 6))
def test_a_moved_picture_is_the_same_elsewhere(right, down):
    picture = numpy.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=numpy.uint8)
    moved = numpy.asarray(move(Image.fromarray(picture), right, down))
    expected = numpy.full_like(picture, 255)
    for y, x in itertools.product(range(5), range(6)):
        if 0 <= y - down < 5 and 0 <= x - right < 6:
            expected[y, x] = picture[y - down, x - right]
    assert numpy.array_equal(moved, expected)


@pytest.mark.parametrize("layout", ["webdataset", "folder"])
def test_every_picture_has_its_copies(commands: CommandServer, tiny_data: TinyData, tmp_path, layout):
    source = tiny_data.corpus / "train" / layout
    command = ["tokenization/shift_pictures.py", "--input", source, "--copies", "2", "--by", "3"]
    for name in ("a", "b"):
        assert commands.run(*command, "--output", tmp_path / name).code == 0
    originals, copies = documents(source), documents(tmp_path / "a")
    assert set(copies) == {f"{name}-moved{copy}" for name in originals for copy in (1, 2)}
    for name, original in originals.items():
        for copy in (1, 2):
            found = copies[f"{name}-moved{copy}"]
            right, down = offset(f"{name.rpartition('/')[2]}-moved{copy}", 3)
            assert found.texts == original.texts
            assert numpy.array_equal(pixels(found), numpy.asarray(move(Image.fromarray(pixels(original)), right, down)))
    tars = [sorted((tmp_path / name).iterdir()) for name in ("a", "b")]
    assert [path.read_bytes() for path in tars[0]] == [path.read_bytes() for path in tars[1]]
    assert "is there already" in commands.run(*command, "--output", tmp_path / "a").out
    done = commands.run(*command[:3], "--copies", "3", "--by", "3", "--output", tmp_path / "a")
    assert_refused(done, f"{tmp_path}/a: was made with copies 2, and now it is 3")
    assert_refused(commands.run(*command, "--output", tmp_path), "is there already, without moved copies")


def test_what_cannot_be_used_is_counted_or_named(commands: CommandServer, tmp_path):
    (tmp_path / "in").mkdir()
    output = tmp_path / "out"
    command = ["tokenization/shift_pictures.py", "--input", tmp_path / "in", "--output", output]
    assert_refused(commands.run(*command), "in")
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    with tarfile.open(tmp_path / "in/a.tar", "w") as tar:
        for name, data in (
            ("./x.y/1.png", png.getvalue()),
            ("./x.y/1.json", json.dumps({"id": "one", "caption": "sun"}).encode()),
            ("2.png", b"no png"),
            ("2.txt", b"name"),
            ("3.txt", b"no picture"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    done = commands.run(*command, "--copies", "1", "--by", "7")
    assert done.code == 0 and "1 pictures; 2 documents rejected (missing_key 1, not_a_picture 1)" in done.out, done
    assert {name: found.texts for name, found in documents(output).items()} == {"one-moved1": ("sun",)}
    (tmp_path / "texts.jsonl").write_text('{"text": "no picture"}\n')
    words = [command[0], "--input", tmp_path / "texts.jsonl", "--output", tmp_path / "other"]
    assert_refused(commands.run(*words), "texts.jsonl", "no pictures with captions")
    (tmp_path / "empty.tar").write_bytes(b"")
    assert_refused(
        commands.run(command[0], "--input", tmp_path / "empty.tar", "--output", tmp_path / "other"), "empty.tar"
    )
    assert_refused(commands.run(*command, "--by", "0"), "--by 0", "at least 1")
    done = commands.run(*command[:-1], tmp_path / "other", "--by", "8")  # a picture of 8 pixels would be white
    assert_refused(done, "none of its pictures can be used (missing_key 1, not_a_picture 1, small_picture 1)")
    assert not (tmp_path / "other").exists()
