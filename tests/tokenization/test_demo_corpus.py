"""The demo corpus: both layouts hold the same pictures and names, and no held-out name was ever drawn in training."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import CommandServer, assert_refused
from tokenization.demo_corpus import concept_key, emoji_names, split_by_concept

SIDES = ("train", "heldout")


def captions(side: Path) -> list[dict]:
    return [json.loads(line) for line in (side / "folder/captions.jsonl").read_text(encoding="utf-8").splitlines()]


def members(side: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted((side / "webdataset").glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_both_layouts_hold_the_same(tiny_data):
    total = 0
    for side in (tiny_data.corpus / name for name in SIDES):
        lines, tar = captions(side), members(side)
        assert len(tar) == 2 * len(lines) > 0
        for line in lines:
            png = (side / "folder" / line["image"]).read_bytes()
            assert png == tar[f"{line['id']}.png"]
            assert json.loads(tar[f"{line['id']}.json"]) == {key: line[key] for key in ("captions", "languages")}
            with Image.open(io.BytesIO(png)) as picture:
                assert picture.size == (32, 32)
                assert len(picture.convert("RGBA").getcolors(1024)) > 1  # something is drawn
        assert len(list((side / "folder/images").iterdir())) == len(lines)
        total += len(lines)
    summary = json.loads((tiny_data.corpus / "corpus.json").read_text())
    assert summary["pictures"] == total == 48
    notice = (tiny_data.corpus / "NOTICE.txt").read_text()
    assert "CC BY-SA 4.0" in notice and "OpenMoji" in notice


def test_no_name_is_on_both_sides(tiny_data):
    names = [{name for line in captions(tiny_data.corpus / side) for name in line["captions"]} for side in SIDES]
    assert all(names) and not names[0] & names[1]
    lines = {line["id"]: line for side in SIDES for line in captions(tiny_data.corpus / side)}
    assert all(line["languages"] == ["en", "de", "zh"] for line in lines.values())
    assert lines["0030-FE0F-20E3"]["captions"][0] == "keycap 0" and "0" in lines["0030-FE0F-20E3"]["captions"][2]


@pytest.mark.parametrize(
    "text, other",
    [
        ("👍", "👍🏿"),  # skin tone
        ("👩‍🚒", "👨🏽‍🚒"),  # gender and skin tone of a fire fighter
        ("👩", "👴"),  # gender and age
        ("🤴", "👸"),  # prince and princess
        ("🏃", "🏃‍♀️"),  # with and without a gender sign
        ("❤", "❤️"),  # a variation selector only
    ],
)
def test_pictures_of_one_concept_share_a_key(text, other):
    keys = [tuple(ord(char) for char in emoji if ord(char) != 0xFE0F) for emoji in (text, other)]
    assert concept_key(keys[0]) == concept_key(keys[1])


@pytest.mark.parametrize("text, other", [("🍎", "🍏"), ("👩‍🚒", "👩‍🌾"), ("🇫🇷", "🇩🇪"), ("👍🏿", "👎🏿")])
def test_pictures_of_other_concepts_do_not(text, other):
    assert concept_key(tuple(map(ord, text))) != concept_key(tuple(map(ord, other)))


def record(number: int, concept: int, pixels: str, **names: str) -> dict:
    return {"id": f"{number:04X}", "concept": (concept,), "pixels_hash": pixels, "names": names}


def test_groups_are_never_split_and_the_share_is_kept():
    records = []
    for number in range(3000):
        group = number // 3  # three pictures each, joined by concept, by pixels, and by a name in one language
        records.append(
            record(
                number,
                group if number % 3 else -number,
                f"{number if number % 3 else group * 3 + 1}",
                en=f"{number}",
                de=f"{group}",
            )
        )
    split = split_by_concept(records, 0.1)
    sides = {entry["id"]: side for side, entries in split.items() for entry in entries}
    assert len(sides) == 3000
    for number in range(0, 3000, 3):
        assert len({sides[f"{number + i:04X}"] for i in range(3)}) == 1
    assert 0.07 < len(split["heldout"]) / 3000 < 0.13
    assert split == split_by_concept(list(reversed(records)), 0.1)


def test_each_kind_of_likeness_joins():
    """Each alone must be enough: concept, pixels, or a name in any language."""
    base = {"concept": 1, "pixels": "a", "en": "one", "de": "eins"}
    for shared in base:
        pairs = []
        for number in range(40):
            for other in (0, 1):
                values = {key: f"{key}{number}{other}" for key in base} | {shared: f"{shared}{number}"}
                pairs.append(record(2 * number + other, 0, values["pixels"], en=values["en"], de=values["de"]))
                pairs[-1]["concept"] = (values["concept"],)
        split = split_by_concept(pairs, 0.5)
        heldout = {entry["id"] for entry in split["heldout"]}
        assert all((f"{2 * n:04X}" in heldout) == (f"{2 * n + 1:04X}" in heldout) for n in range(40)), shared
        assert 0 < len(heldout) < 80


def test_a_new_picture_moves_no_other():
    records = [record(number, number, f"{number}", en=f"{number}") for number in range(500)]
    before = {entry["id"] for entry in split_by_concept(records, 0.2)["heldout"]}
    after = {entry["id"] for entry in split_by_concept([record(9999, 9999, "x", en="x"), *records], 0.2)["heldout"]}
    assert after - {f"{9999:04X}"} == before


def test_names_are_as_a_person_writes_them():
    names = emoji_names(["en", "de"])
    assert names[(0x1F600,)] == {"en": "grinning face", "de": "grinsendes gesicht"}
    assert names[(0x2764,)]["en"] == "red heart"  # listed with a variation selector


def test_a_finished_corpus_is_left_alone_and_nothing_else_is_overwritten(commands: CommandServer, tmp_path):
    script, output = "tokenization/demo_corpus.py", tmp_path / "corpus"
    small = ("--size", 16, "--limit", 4)
    assert commands.run(script, "--output", output, *small).code == 0
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    again = commands.run(script, "--output", output, *small)
    assert again.code == 0 and "is complete" in again.out
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == times
    for more in (("--size", 32), ("--languages", "en")):
        done = commands.run(script, "--output", output, *small, *more)
        assert_refused(done, f"{output}: was made with {more[0][2:]} ", "choose another --output")
    below = output / "corpus.json/below"
    assert_refused(commands.run(script, "--output", below, *small), "cannot be made a folder")
    (output / "corpus.json").write_text("[")
    assert_refused(commands.run(script, "--output", output, *small), f"{output}/corpus.json: cannot be read")
    (output / "corpus.json").unlink()
    done = commands.run(script, "--output", output, *small)
    assert_refused(done, str(output))
    for option, value in (
        ("--size", 0),
        ("--size", 100_000),
        ("--shard-size", 0),
        ("--limit", -5),
        ("--heldout", "nan"),
    ):
        done = commands.run(script, "--output", tmp_path / "other", option, value)
        assert done.code == 2 and option in done.err.splitlines()[-1], done.err
    done = commands.run(script, "--output", tmp_path / "other", "--languages", "en", "xx", *small)
    assert_refused(done, "xx")
    assert not (tmp_path / "other").exists()


def test_the_same_command_makes_the_same_bytes(commands: CommandServer, tmp_path):
    contents = []
    for name in ("a", "b"):
        done = commands.run("tokenization/demo_corpus.py", "--output", tmp_path / name, "--size", 16, "--limit", 6)
        assert done.code == 0
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert contents[0] == contents[1] and len(contents[0]) > 8
