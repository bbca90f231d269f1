"""Pictures of several frames or pages: the first is read, and how many there are is told and recorded."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest
from PIL import Image, features

from tests.commands import CommandServer
from tests.pretrain.tiny_run import TinyData
from tests.tokenization.corpora import Command, contents, folder_corpus, jsonl, picture, tar
from tokenization.frames import FURTHER, in_words, merged
from tokenization.preprocess import open_image
from tokenization.shards import open_dataset

STEREO = 0x020002  # type of a view of a stereo pair in an MPO
REDUCED, MASK = 1, 4  # kinds of TIFF pages


def saved(format: str, frames: int = 2, **options) -> bytes:
    """A file with pictures that differ."""
    images = [Image.open(io.BytesIO(picture(seed))) for seed in range(frames)]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(buffer, format, **more, **options)
    return buffer.getvalue()


def mpo(kind: int) -> bytes:
    """An MPO whose second picture is of this type; Pillow's own are undefined, type 0."""
    data = saved("MPO")
    first, second = Image.open(io.BytesIO(data)).mpinfo[0xB002]
    assert second["Attribute"]["MPType"] == "Undefined"
    entry = data.index(struct.pack("<LL", 0x030000, first["Size"])) + 16
    return data[:entry] + kind.to_bytes(4, "little") + data[entry + 4 :]


def tiff(*kinds: int) -> bytes:
    """A TIFF of pages of these kinds."""
    pages = []
    for number, kind in enumerate(kinds):
        page = Image.open(io.BytesIO(picture(number)))
        page.encoderinfo = {"tiffinfo": {254: kind}}
        pages.append(page)
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], tiffinfo={254: kinds[0]})
    return buffer.getvalue()


SEVERAL = {
    "GIF": saved("GIF"),
    "WEBP": saved("WEBP", lossless=True),
    "PNG": saved("PNG"),
    "TIFF": saved("TIFF", 3),
    "MPO": mpo(STEREO),
    "PNG with a still picture": saved("PNG", default_image=True),
    "TIFF with a preview and a page": tiff(0, REDUCED, 0),
}
SINGLE = {
    **{format: saved(format, 1) for format in ("GIF", "WEBP", "PNG", "TIFF", "JPEG", "BMP", "PPM", "MPO")},
    "MPO with a gain map": mpo(0),
    "MPO with a preview": mpo(0x010001),
    "TIFF with a preview and a mask": tiff(0, REDUCED, MASK),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_further_frames_are_noticed_and_the_first_is_read(name: str):
    data = SEVERAL[name]
    image = open_image(data)
    assert image.info[FURTHER]
    first = Image.open(io.BytesIO(data))  # untouched by a search for more
    assert (image.mode, image.tobytes()) == (first.mode, first.tobytes())


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_a_sequence_in_avif_is_noticed():
    assert open_image(saved("AVIF")).info[FURTHER] and FURTHER not in open_image(saved("AVIF", 1)).info


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_picture_and_what_nobody_misses_are_not_counted(name: str):
    assert FURTHER not in open_image(SINGLE[name]).info


@pytest.mark.parametrize("name", ["GIF", "TIFF"])
def test_further_frames_that_are_damaged_change_nothing_for_the_first(name: str):
    data = SEVERAL[name]
    cut = data[: len(data) * 2 // 3] if name == "GIF" else data[:-40]
    image = open_image(cut)
    assert image.info[FURTHER] and image.convert("RGB").tobytes() == open_image(data).convert("RGB").tobytes()


def test_counts_add_up_in_words():
    one, two = {"pictures": 1, "example": "a.gif"}, {"pictures": 1200, "example": "b.tif"}
    assert merged([{}, one, {}, two]) == {"pictures": 1201, "example": "a.gif"} and merged([{}]) == merged([]) == {}
    assert in_words({}) == "" and in_words(one) == "1 picture has further frames or pages, which are left out, as a.gif"
    assert in_words(two).startswith("1,200 pictures have ")


def moving_corpus(folder: Path) -> list[Path]:
    """A folder of 20 pictures and 3 files of several, and a tar with one of several and one that is rejected."""
    folder_corpus(folder / "a", 20)
    records = [json.loads(line) for line in (folder / "a/captions.jsonl").open()]
    for number, format in ((2, "GIF"), (11, "PNG"), (17, "TIFF")):
        name = f"moving{number}.{format.lower()}"
        (folder / "a" / name).write_bytes(SEVERAL[format])
        records.insert(number, {"image": name, "caption": "x", "id": name})
    jsonl(folder / "a/captions.jsonl", records)
    (folder / "b").mkdir()
    members = [("a.webp", SEVERAL["WEBP"]), ("a.txt", b"a"), ("b.gif", SEVERAL["GIF"]), ("b.txt", b" ")]
    tar(folder / "b/0.tar", members)
    return [folder / "a", folder / "b"]


TOLD = "note: 4 pictures have further frames or pages, which are left out, as moving2.gif"


def test_a_job_counts_them_over_parts_workers_and_restarts(command: Command, tmp_path: Path):
    inputs = moving_corpus(tmp_path / "in")
    code, told = command(inputs, tmp_path / "out")
    assert code == 0 and TOLD in told.splitlines()
    manifest = open_dataset(tmp_path / "out").manifest
    assert manifest["first_frames"] == {"pictures": 4, "example": "moving2.gif"}
    assert manifest["counts"]["pictures"] == 24 and manifest["rejects"] == {"empty_caption": 1}
    parts = [
        part["first_frames"].get("pictures", 0)
        for path in sorted((tmp_path / "out/files").iterdir())
        for part in json.loads(path.read_text())["content"]["parts"]
    ]
    assert parts == [1, 1, 1, 1]

    assert command(inputs, tmp_path / "two", job_index=0, job_count=2)[0] == 0  # the folder
    code, told = command(inputs, tmp_path / "two", job_index=1, job_count=2, max_rejects=0.5)  # the tar
    assert code == 0 and TOLD in told.splitlines() and contents(tmp_path / "two") == contents(tmp_path / "out")

    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/files/000000.json").unlink()  # as if it had been killed before the end
    code, told = command(inputs, tmp_path / "out")
    assert code == 0 and TOLD in told.splitlines() and contents(tmp_path / "two") == contents(tmp_path / "out")


def test_codes_and_fingerprint_are_those_of_the_first_frames_alone(command: Command, tmp_path: Path):
    files = {f"{number}.png": SEVERAL[format] for number, format in enumerate(("GIF", "WEBP", "PNG", "TIFF"))}
    for name, data in files.items():
        (tmp_path / "first").mkdir(exist_ok=True)
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / name).write_bytes(data)
        Image.open(io.BytesIO(data)).convert("RGB").save(tmp_path / "first" / name)
        for folder in ("all", "first"):
            (tmp_path / folder / name).with_suffix(".txt").write_text(name)
    manifests = []
    for folder in ("all", "first"):
        assert command([Path(f"x={tmp_path / folder}")], tmp_path / f"{folder}-out")[0] == 0
        manifests.append(open_dataset(tmp_path / f"{folder}-out").manifest)
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    assert manifests[0]["first_frames"]["pictures"] == 4 and "first_frames" not in manifests[1]


def test_both_inspectors_tell_it(commands: CommandServer, tiny_data: TinyData, command: Command, tmp_path: Path):
    inputs = moving_corpus(tmp_path / "in")
    done = commands.run("tools/inspect_data.py", "--input", *inputs, "--output", tmp_path / "data", "--image-size", 32)
    assert done.code == 0, done.err
    line = "first frames: 3 pictures have further frames or pages, which are left out, as moving2.gif"
    assert f"  {line}" in done.out.splitlines() and "moving2.gif" in (tmp_path / "data/index.html").read_text()
    assert command(inputs, tmp_path / "out")[0] == 0
    words = ("--shards", tmp_path / "out", "--vq", command.vq, "--output", tmp_path / "shards")
    done = commands.run("tools/inspect_shards.py", *words)
    assert done.code == 0, done.err
    assert TOLD.removeprefix("note: ") in done.out.splitlines()
    assert TOLD.removeprefix("note: ") in (tmp_path / "shards/index.html").read_text()
