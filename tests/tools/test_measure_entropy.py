"""The command on real shards: its files and words, and what it refuses."""

from __future__ import annotations

import csv

from tests.commands import assert_refused
from tokenization.shards import open_dataset
from tools.measure_entropy import sequences


def test_streams_are_measured_and_told(commands, tiny_data, tmp_path):
    done = commands.run(
        "tools/measure_entropy.py",
        "--text",
        f"names={tiny_data.train}",
        "--image",
        f"codes={tiny_data.train}",
        "--output",
        tmp_path,
        "--orders",
        3,
        "--points",
        2,
    )
    assert done.code == 0, done.err
    assert "| names |" in done.out and "| codes |" in done.out and "What can be trusted" in done.out
    with open(tmp_path / "entropy.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["n"], row["share"]) for row in rows[:6]] == [
        ("names", str(n), share) for share in ("0.5", "1.0") for n in (1, 2, 3)
    ]
    counts = open_dataset(tiny_data.train).manifest["counts"]
    whole = {row["name"]: int(row["windows"]) for row in rows if row["share"] == "1.0" and row["n"] == "1"}
    assert whole == {"names": counts["text_tokens"], "codes": counts["image_tokens"]}
    assert (tmp_path / "entropy.png").stat().st_size > 5000


def test_sequences_are_single_texts_and_pictures(tiny_data):
    dataset = open_dataset(tiny_data.train)
    texts, pictures = (list(sequences(dataset, modality)) for modality in ("text", "image"))
    counts = dataset.manifest["counts"]
    assert len(texts) == counts["texts"] and len(pictures) == counts["pictures"]
    first = dataset[0]
    assert texts[0].tolist() == first["text_ids"][: first["text_lengths"][0]].tolist()
    assert all(len(picture) == 16 for picture in pictures)


def test_what_cannot_be_measured_is_refused(commands, tiny_data, tmp_path):
    def refused(*parts: str, arguments: tuple) -> None:
        assert_refused(commands.run("tools/measure_entropy.py", "--output", tmp_path / "x", *arguments), *parts)

    refused("NAME=FOLDER", arguments=("--text", tiny_data.train))
    refused("no manifest.json", arguments=("--text", f"a={tmp_path}"))
    refused("one name", arguments=("--text", f"a={tiny_data.train}", "--image", f"a={tiny_data.train}"))
    assert commands.run("tools/measure_entropy.py", "--output", tmp_path / "x").code == 2
    for option in (("--memory", "nan"), ("--memory", "1e-9"), ("--points", "0"), ("--orders", "1000")):
        done = commands.run(
            "tools/measure_entropy.py", "--output", tmp_path / "x", "--text", f"a={tiny_data.train}", *option
        )
        assert done.code == 2 and f"argument {option[0]}: {option[1]} is not a number of at least" in done.err, done.err
    (tmp_path / "file").touch()
    words = ("tools/measure_entropy.py", "--text", f"a={tiny_data.train}", "--output", tmp_path / "file")
    assert_refused(commands.run(*words), "--output", "is a file")
    (tmp_path / "summary.md").write_text("conflicts\n")
    assert_refused(commands.run(*words[:-1], tmp_path), "summary.md is not of this command", "another folder")
    assert not (tmp_path / "x").exists()
