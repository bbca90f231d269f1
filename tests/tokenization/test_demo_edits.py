"""The editing corpus: each row asks for exactly what changed, and no held-out picture is one that was trained on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.commands import CommandServer, assert_refused
from tests.pretrain.tiny_run import TinyData
from tokenization.demo_edits import (
    LEAST_CHANGE,
    LEAST_SHOWN,
    SEEN,
    Drawings,
    candidates,
    choose,
    instructions,
    on_white,
    read_prompt_templates,
    read_split,
)
from tokenization.edit_pairs import (
    FAMILIES,
    KINDS,
    Edit,
    attributes_of,
    changed_svg,
    drawn_edits,
    layer_edits,
    layers_of,
)

SCRIPT = "tokenization/demo_edits.py"
SMALL = ("--size", 32, "--train", 12, "--heldout", 6)


def keys_of(*texts: str) -> dict[str, tuple[int, ...]]:
    return {text: tuple(ord(char) for char in text if ord(char) != 0xFE0F) for text in texts}


def edits_between(*texts: str) -> set[tuple[str, ...]]:
    return {(edit.kind, edit.source, edit.target, *edit.values) for edit in drawn_edits(keys_of(*texts))}


@pytest.mark.parametrize(
    "before, after, kind, forth, back",
    [
        ("👍", "👍🏿", "skin", "dark", "yellow"),
        ("👍🏻", "👍🏽", "skin", "medium", "light"),
        ("👩‍🚒", "👨‍🚒", "gender", "man", "woman"),
        ("🏃🏽", "🏃🏽‍♀️", "gender", "woman", "person"),
        ("🤴", "👸", "gender", "woman", "man"),
        ("👧", "👩", "age", "adult", "child"),
        ("👩‍🦰", "👩‍🦳", "hair", "white", "red"),
        ("🚶", "🚶‍➡️", "direction", "right", "left"),
        ("🕐", "🕟", "clock", "4:30", "1:00"),
    ],
)
def test_pictures_that_differ_in_one_attribute_are_an_edit(before, after, kind, forth, back):
    assert edits_between(before, after) == {(kind, before, after, forth), (kind, after, before, back)}


@pytest.mark.parametrize(
    "before, after", [("👍🏿", "👎🏿"), ("👩🏻", "👨🏿"), ("👧", "👨"), ("🍎", "🍏"), ("🕐", "🍎")]
)
def test_pictures_that_differ_in_more_are_not(before, after):
    assert not edits_between(before, after)


def test_people_of_several_tones_are_left_out():
    couple = "🧑🏻‍🤝‍🧑🏿"
    assert attributes_of(keys_of(couple)[couple]) is None


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><g id="color"><path fill="#EA5A47" d="M0 0"/>'
    '<path fill="#fff" d="M1 1"/></g><g id="hair"><path fill="#a57939" d="M2 2"/></g><g id="line">'
    '<path fill="none" stroke="#000" d="M3 3"/></g></svg>'
)


def test_layers_are_removed_and_painted():
    assert layers_of(SVG) == {"color": {"#ea5a47", "#ffffff"}, "skin": set(), "hair": {"#a57939"}, "line": {"#000000"}}
    assert layers_of(changed_svg(SVG, "line")) == {"color": set(), "skin": set(), "hair": set(), "line": {"#000000"}}
    assert layers_of(changed_svg(SVG, "fill"))["line"] == set()
    red, blue = FAMILIES["red"][0], FAMILIES["blue"][0]
    painted = layers_of(changed_svg(SVG, "red>blue"))
    assert red in layers_of(SVG)["color"] and painted["color"] == {blue, "#ffffff"} and painted["line"] == {"#000000"}
    assert layers_of(changed_svg(SVG, "hair=blond"))["hair"] == {"#f1b31c"}


def test_every_layer_edit_can_be_made_and_asked_for():
    wordings = read_prompt_templates()
    assert set(wordings) == set(KINDS)
    made = list(layer_edits("A", SVG))
    assert {edit.kind for edit in made} == {"line art", "colour in", "outline", "recolour", "hair colour"}
    for edit in made:
        assert any(
            "+" in name and layers_of(changed_svg(SVG, name.split("+")[1])) != layers_of(SVG)
            for name in (edit.source, edit.target)
        )
    recolour = next(edit for edit in made if edit.values == ("red", "blue"))
    assert instructions(recolour, wordings) == [
        "make the red parts blue",
        "change red to blue",
        "Ändere die Farbe Rot zu Blau",
        "把红色的部分变成蓝色",
    ]
    assert instructions(Edit("clock", "a", "b", ("4:30",)), wordings)[0] == "set the clock to 4:30"


def test_every_drawn_edit_can_be_asked_for():
    """All values that the pictures have are in the table, in every language."""
    wordings = read_prompt_templates()
    people = [
        "👶",
        "👍",
        "👍🏻",
        "👍🏼",
        "👍🏽",
        "👍🏾",
        "👍🏿",
        "👨",
        "👩",
        "🧑",
        "🧒",
        "🧓",
        "👩‍🦰",
        "👩‍🦱",
        "👩‍🦲",
        "👩‍🦳",
        "🚶",
        "🚶‍➡️",
    ]
    asked = {edit.kind: instructions(edit, wordings) for edit in drawn_edits(keys_of(*people, "🕐", "🕜"))}
    assert set(asked) == {"skin", "gender", "age", "hair", "direction", "clock"}
    assert all(len(texts) == 4 and all(texts) for texts in asked.values())


@pytest.fixture(scope="module")
def edits(tmp_path_factory, commands: CommandServer, tiny_data: TinyData) -> Path:
    folder = tmp_path_factory.mktemp("edits") / "edits"
    done = commands.run(SCRIPT, "--corpus", tiny_data.corpus, "--output", folder, *SMALL)
    assert done.code == 0, done.err
    return folder


def rows_of(folder: Path) -> list[dict]:
    import pyarrow.parquet

    return [row for path in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]


def test_rows_have_two_pictures_that_differ_and_a_question_in_each_language(edits):
    summary = json.loads((edits / "edits.json").read_text())
    for side, limit in (("train", 12), ("heldout", 6)):
        rows = rows_of(edits / side)
        assert len(rows) == summary[side]["edits"] == sum(summary[side]["kinds"].values()) > 0
        assert max(summary[side]["kinds"].values()) <= limit
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            before, after = (
                numpy.frombuffer(on_white(Image.open(io.BytesIO(data))), numpy.uint8).reshape(32, 32, 3).astype(int)
                for data in row["image_list"]
            )
            assert (abs(before - after).max(axis=2) > SEEN).mean() >= LEAST_CHANGE
            assert min((picture.min(axis=2) < 255 - SEEN).mean() for picture in (before, after)) >= LEAST_SHOWN
            assert len(row["instruction_list"]) == 1 and len(row["instruction_list"][0]) == 4
    assert "CC BY-SA 4.0" in (edits / "NOTICE.txt").read_text()


def test_no_held_out_picture_is_a_training_picture(edits, tiny_data):
    def looks(data: bytes) -> bytes:
        return on_white(Image.open(io.BytesIO(data)))

    seen = {looks(data) for row in rows_of(edits / "train") for data in row["image_list"]}
    drawings = Drawings(32)
    corpus = {
        side: {looks(drawings.picture(name)[0]) for name in names}
        for side, names in read_split(tiny_data.corpus).items()
    }
    heldout = {looks(data) for row in rows_of(edits / "heldout") for data in row["image_list"]}
    assert seen and heldout
    assert not heldout & (seen | corpus["train"]) and not seen & corpus["heldout"]


def test_a_picture_that_is_on_the_other_side_by_chance_is_not_used():
    """A red heart that is painted blue is not the blue heart, were that held out."""
    from tqdm import tqdm

    drawings, progress = Drawings(32), tqdm(disable=True)
    by_kind = candidates(keys_of_ids("2764", "1F499"), drawings)
    free = choose(by_kind, 100, drawings, set(), progress)
    assert any(edit.target == "2764+red>blue" for edit in free)
    looks = drawings.hash("2764+red>blue")
    barred = choose(by_kind, 100, drawings, {looks}, progress)
    assert 0 < len(barred) < len(free)
    assert not any(looks in (drawings.hash(edit.source), drawings.hash(edit.target)) for edit in barred)


def test_a_picture_that_shows_nothing_is_no_target():
    """The face of a clock without its outlines is white; a red heart without them is a heart."""
    from tqdm import tqdm

    by_kind = candidates(keys_of_ids("1F552", "2764"), drawings := Drawings(32))
    assert {edit.target for edit in by_kind["outline"]} == {"1F552+fill", "2764+fill"}
    chosen = choose(by_kind, 100, drawings, set(), tqdm(disable=True))
    assert [edit.target for edit in chosen if edit.kind == "outline"] == ["2764+fill"]
    assert drawings.shown("2764+fill") > 0.2


def keys_of_ids(*names: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(int(part, 16) for part in name.split("-")) for name in names}


def test_the_rows_become_editing_shards(edits, tiny_data, commands, tmp_path):
    from tokenization.shards import open_dataset

    done = commands.run(
        "tokenization/shard_images.py",
        "--input",
        edits / "heldout",
        "--output",
        tmp_path / "shards",
        "--vq",
        tiny_data.vq,
        "--tokenizer",
        tiny_data.tokenizer,
        "--workers",
        0,
    )
    assert done.code == 0, done.err
    dataset = open_dataset(tmp_path / "shards")
    assert {document["kind"] for document in dataset} == {"edit"}
    assert [document["id"] for document in dataset] == [row["id"] for row in rows_of(edits / "heldout")]
    assert all(len(document["texts"]) == 4 and document["codes"].size == 2 * 16 for document in dataset)


def test_the_same_command_makes_the_same_bytes_and_leaves_a_finished_folder(edits, tiny_data, commands, tmp_path):
    other = tmp_path / "edits"
    command = (SCRIPT, "--corpus", tiny_data.corpus, "--output", other, *SMALL)
    (tmp_path / "edits.partial" / "train").mkdir(parents=True)  # of a run that was killed
    assert commands.run(*command).code == 0
    files = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (edits, other)
    ]
    assert files[0] == files[1] and len(files[0]) == 4
    assert not (tmp_path / "edits.partial").exists()
    times = {path: path.stat().st_mtime_ns for path in other.rglob("*")}
    again = commands.run(*command)
    assert again.code == 0 and "is complete" in again.out
    assert {path: path.stat().st_mtime_ns for path in other.rglob("*")} == times
    (other / "edits.json").unlink()
    assert_refused(commands.run(*command), str(other))


def test_a_corpus_that_is_none_is_refused(commands, tmp_path):
    done = commands.run(SCRIPT, "--corpus", tmp_path, "--output", tmp_path / "edits")
    assert_refused(done, str(tmp_path), "demo_corpus.py")
    assert not (tmp_path / "edits").exists()


@pytest.mark.parametrize(
    "content, said", [('{"a": 1}\n', "captions.jsonl"), ("\0" * 99, "captions.jsonl"), ("", "no edit")]
)
def test_a_damaged_corpus_is_refused_and_nothing_is_made(commands, tmp_path, content, said):
    for side in ("train", "heldout"):
        (tmp_path / side / "folder").mkdir(parents=True)
        (tmp_path / side / "folder" / "captions.jsonl").write_text(content)
    (tmp_path / "corpus.json").write_text("{}")
    assert_refused(commands.run(SCRIPT, "--corpus", tmp_path, "--output", tmp_path / "edits"), str(tmp_path), said)
    assert not (tmp_path / "edits").exists()
