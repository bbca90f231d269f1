"""One cell with the real commands on tiny data.

Its measures are there, and a second time they are the same to the last bit.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from pretrain.system.errors import UserError
from tests.commands import assert_refused
from tools.study.cells import do_cell
from tools.study.compare import values_of
from tools.study.data import LANGUAGES, fingerprints
from tools.study.plan import PRESETS, Cell
from tools.study.report import collect, write

PRESET = dataclasses.replace(
    PRESETS["quick"],
    hidden_size=32,
    intermediate_size=48,
    sequence_length=256,
    seeds=(0,),
    steps=6,
    pairs=4,
    rows=2,
    blocks=4,
    targets=8,
    learning_rates=(1e-3,),
)
EVERY_TEXT = [f"{language}/{side}" for language in LANGUAGES for side in ("train", "heldout")]
CELL = Cell("unix_both", (("kind", "separated"), ("shallow", 2), ("deep", 1)), 1e-3, 0, steps=6)


@pytest.fixture(scope="module")
def paths(commands, tiny_data, tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("study")
    for language, sentence in (("en", "A row of words about ships. "), ("de", "Ein Satz über Schiffe und Boote. ")):
        for side in ("train", "heldout"):
            lines = [json.dumps({"text": f"{index} {side} " + sentence * (2 + index % 3)}) for index in range(12)]
            (root / f"{language}-{side}.jsonl").write_text("\n".join(lines) + "\n")
            done = commands.run(
                "tokenization/shard_images.py",
                "--input",
                root / f"{language}-{side}.jsonl",
                "--output",
                root / "texts" / language / side,
                "--vq",
                tiny_data.vq,
                "--tokenizer",
                tiny_data.tokenizer,
                "--workers",
                0,
            )
            assert done.code == 0, done.err
    for side, folder in (("train", tiny_data.train), ("heldout", tiny_data.heldout)):
        shutil.copytree(folder, root / "pictures" / side)
    sources = [
        {"path": str(tiny_data.train)},
        {"path": str(root / "texts/en/train")},
        {"path": str(root / "texts/de/train")},
    ]
    return {
        "tokenizer": str(tiny_data.tokenizer),
        "pictures": str(root / "pictures"),
        "texts": str(root / "texts"),
        "heldout": str(tiny_data.heldout),
        "sources": sources,
    }


def test_a_cell_measures_what_it_says_and_repeats_to_the_last_bit(commands, paths, tmp_path):
    def run(command, log) -> int:
        done = commands.run(*command)
        log.write_text(done.out + done.err)
        return done.code

    first, second = (do_cell(tmp_path / name, PRESET, CELL, paths, run=run) for name in ("a", "b"))
    assert "failed" not in first, first
    for result in (first, second):
        for key in ("run", "tokens_per_second", "seconds"):
            del result[key]
        del result["measures"]["checkpoint"]
    assert first == second
    measures = first["measures"]
    assert set(measures["losses"]) == {"text_de", "text_en", "names", "pictures"}
    assert all(part["tokens"] > 10 and 3 < part["loss"] < 12 for part in measures["losses"].values())
    for side in measures["pairs"].values():
        assert all(0 <= chosen["accuracy"] <= 1 and chosen["candidates"] == 4 for chosen in side.values())
    assert measures["parameters"]["total"] > measures["parameters"]["activated"] > 0
    assert [step for step, _, _ in first["curve"]] == [0, 1, 2, 3, 4, 5, 6]
    assert (tmp_path / "a" / CELL.name / "conflict/conflict.csv").is_file()
    write(tmp_path / "report", tmp_path / "a", PRESET, collect(tmp_path / "a", PRESET), {})
    assert "Uni-X 2:1" in (tmp_path / "report/report.md").read_text()
    assert values_of(json.loads((tmp_path / "a" / CELL.name / "result.json").read_text()))["tokens_per_second"] > 0
    runs = [tmp_path / name / CELL.name / "run" for name in ("a", "b")]
    timing = (
        "tools/study_speed.py",
        "--data",
        paths["heldout"],
        "--sequence-length",
        64,
        "--output",
        tmp_path / "new" / "speed.json",
        "--runs",
    )
    done = commands.run(*timing, *runs, "--rounds", 2)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "new/speed.json").read_text())
    assert found["sequence_length"] == 64 and [len(times) for times in found["seconds"].values()] == [2, 2]
    assert list(found["seconds"]) == [str(run) for run in runs] and min(map(min, found["seconds"].values())) > 0
    assert_refused(
        commands.run(*timing, runs[0], "--rounds", 9999), paths["heldout"], "10001 are needed: lower --rounds"
    )
    (tmp_path / "file").touch()
    done = commands.run(*timing, runs[0], "--rounds", 9999, "--output", tmp_path / "file" / "speed.json")
    assert_refused(done, f"{tmp_path}/file: cannot be made a folder")
    done = commands.run(*timing, runs[0], "--rounds", 2, "--output", tmp_path)
    assert_refused(done, f"{tmp_path}: is a folder", "--output")


def test_without_the_demo_the_study_says_what_to_run(commands, tmp_path):
    done = commands.run("tools/run_study.py", "--data", tmp_path, "--folder", tmp_path / "study")
    assert_refused(done, str(tmp_path / "tokenizer/tokenizer.json"), "make demo")
    assert not (tmp_path / "study").exists()


def test_data_of_another_format_are_refused_once_and_not_in_every_cell(paths, tmp_path):
    for folder in ("shards/train", "shards/heldout", "texts/heldout-mixed", *(f"texts/shards/{x}" for x in EVERY_TEXT)):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(f"{paths['pictures']}/train/manifest.json", tmp_path / folder)
    assert len(fingerprints(tmp_path)) == 9
    path = tmp_path / "texts/shards/zh/train/manifest.json"
    path.write_text(path.read_text().replace('"format_version": ', '"format_version": 9'))
    with pytest.raises(UserError, match="zh/train/manifest.json: format version 9"):
        fingerprints(tmp_path)
