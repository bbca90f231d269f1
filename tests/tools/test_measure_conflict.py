"""The command on a real checkpoint: its files, its words, its refusals; and many processes find what one finds."""

from __future__ import annotations

import csv
import json

import pytest

from tests.commands import assert_refused
from tests.pretrain import checkpoint_jobs
from tests.pretrain.tiny_run import write_config
from tools.analysis.conflict_profile import COLUMNS, read

SMALL = ("--blocks", 4, "--targets", 16, "--sequence-length", 128, "--threads", 1)


@pytest.fixture(scope="module")
def run(commands, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conflict") / "run"
    done = commands.run("pretrain/train.py", "--config", write_config(tiny_data, folder), "run.steps=2")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def profile(commands, run, tiny_data):
    output = run.parent / "profile"
    done = commands.run(
        "tools/measure_conflict.py", "--checkpoint", run, "--data", tiny_data.train, "--output", output, *SMALL
    )
    assert done.code == 0, done.err
    assert "Gradient conflict" in done.out and "64 target tokens for each gradient, in 4 blocks" in done.out
    return output


def test_a_profile_has_every_matrix_of_every_layer_and_reads_back(profile, run, tiny_data):
    lines, settings, model = read(profile)
    assert settings["data"] == [str(tiny_data.train)] and str(run) in settings["checkpoint"]
    assert model["layer_kinds"] == ["separated", "shared", "shared", "separated"]
    both = [line for line in lines if line.met_by == "both"]
    assert len(lines) == 6 * 10 and [line.layer for line in both if line.matrix == "layer"] == [1, 2]
    assert all(line.low < line.conflict < line.high and -1 <= line.between <= 1 for line in both)
    with open(profile / "conflict.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(lines)
    assert float(rows[-1]["conflict"]) == lines[-1].conflict
    assert (profile / "conflict.png").stat().st_size > 5000


def test_two_processes_find_what_one_finds(world, run, profile, tiny_data, tmp_path):
    inputs = ["--checkpoint", run, "--data", tiny_data.train, "--output", tmp_path / "two"]
    words = [str(word) for word in (*inputs, *SMALL, "--memory", "0.0001")]
    assert world.run(checkpoint_jobs.measure_conflict, 2, arguments=words) == [0, 0]
    for one, two in zip(read(profile)[0], read(tmp_path / "two")[0], strict=True):
        assert two.conflict == pytest.approx(one.conflict, abs=1e-5) and two.low == pytest.approx(one.low, abs=1e-5)


def test_what_does_not_fit_is_refused(commands, run, tiny_data, tmp_path):
    def refused(*parts: str, checkpoint=run, data=tiny_data.train, arguments=()) -> None:
        done = commands.run(
            "tools/measure_conflict.py",
            "--checkpoint",
            checkpoint,
            "--data",
            data,
            "--output",
            tmp_path / "x",
            *SMALL,
            *arguments,
        )
        assert_refused(done, *parts)
        assert not (tmp_path / "x").exists()

    refused("holds no checkpoint", checkpoint=tmp_path)
    refused("no manifest.json", data=tmp_path)
    refused("are wanted", "plain", arguments=("--text", "plain"))
    refused("even number", arguments=("--blocks", 5))
    refused("share", arguments=("--text-to-image", 2))
    refused("--memory nan", arguments=("--memory", "nan"))
    refused("--seed -1", arguments=("--seed", "-1"))
    refused("--output", "is a file: give another folder", arguments=("--output", run / "config.yaml"))
    refused("is given twice", str(tiny_data.train), arguments=("--data", tiny_data.train, tiny_data.train / "."))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "summary.md").write_text("entropies\n")
    refused("summary.md is not of this command", arguments=("--output", tmp_path / "other"))
    (tmp_path / "conflict.json").write_text(json.dumps({"lines": 3}))
    with pytest.raises(Exception, match="no conflict profile"):
        read(tmp_path)
