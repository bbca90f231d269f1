"""Held-out losses are those that training wrote down, of the checkpoint and of its export; retrieval by both is one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.system.errors import UserError
from tests.commands import assert_refused
from tests.pretrain.tiny_run import STEPS, write_config
from tools import evaluate
from tools.study import scores

ROOT = Path(__file__).resolve().parents[3]
MEANS = ("loss", "loss_text", "loss_image")


@pytest.fixture(scope="module")
def run(commands, tiny_data, tmp_path_factory) -> Path:
    """A finished run whose last step was measured on held-out rows, and its export in `model`."""
    folder = tmp_path_factory.mktemp("losses") / "run"
    config = write_config(tiny_data, folder)
    for script, *arguments in (
        ("pretrain/train.py", "--config", config, "log.heldout_rows=3"),
        ("tools/convert_to_hf.py", "--checkpoint", folder, "--output", folder.parent / "model"),
    ):
        done = commands.run(script, *arguments)
        assert done.code == 0, done.err
    return folder


def measure(commands, output: Path, *arguments: object) -> dict:
    done = commands.run("tools/evaluate.py", "--output", output, *arguments)
    assert done.code == 0, done.err
    (path,) = output.glob("*.json")
    assert path.name in done.out
    return json.loads(path.read_text(encoding="utf-8"))


def trained(run: Path) -> dict:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["step"] == STEPS and "heldout/loss" in line]
    return {name: last[f"heldout/{name}"] for name in MEANS}


def test_a_checkpoint_and_its_export_have_the_held_out_loss_of_training(commands, run, tmp_path):
    of_run = measure(commands, tmp_path / "a", "--task", "heldout", "--checkpoint", run)
    assert {name: of_run["scores"][name] for name in MEANS} == pytest.approx(trained(run), abs=1e-6)
    assert of_run["model"]["step"] == STEPS and of_run["settings"]["rows"] == 3
    config = ["--config", run / "config.yaml"]
    of_export = measure(commands, tmp_path / "b", "--task", "heldout", "--model", run.parent / "model", *config)
    assert of_export["scores"] == pytest.approx(of_run["scores"], abs=1e-5)
    assert of_export["model"]["from"] == "export" and of_export["data"] == of_run["data"]
    again = measure(commands, tmp_path / "c", "--task", "heldout", "--model", run.parent / "model", *config)
    assert again == of_export
    assert (tmp_path / "b/heldout.json").read_bytes() == (tmp_path / "c/heldout.json").read_bytes()


def test_all_rows_of_any_shards_without_a_run(commands, run, tiny_data, tmp_path):
    words = [
        "--task",
        "heldout",
        "--model",
        run.parent / "model",
        "--data",
        tiny_data.heldout,
        "--sequence-length",
        256,
    ]
    found = measure(commands, tmp_path / "all", *words)
    manifest = json.loads((tiny_data.heldout / "manifest.json").read_text())
    rows = found["data"].pop("rows")
    assert found["data"] == {"name": "heldout", "digest": manifest["fingerprint"]} and len(rows) == 64
    assert found["settings"]["rows"] == found["items"]["done"] > 1
    done = commands.run(
        "tools/evaluate.py", *words, "--output", tmp_path / "more", "--rows", found["settings"]["rows"] + 1
    )
    assert done.code == 0 and "documents are measured up to 2 times" in done.err
    few = measure(commands, tmp_path / "few", *words, "--rows", 1)
    assert few["settings"]["rows"] == 1 and few["scores"]["tokens_image"] < found["scores"]["tokens_image"]


def test_retrieval_is_of_a_checkpoint_or_of_its_export(commands, run, tiny_data, tmp_path):
    words = ["--task", "retrieval", "--data", tiny_data.heldout, "--pairs", 6, "--sequence-length", 256]
    one = measure(commands, tmp_path / "a", *words, "--checkpoint", run)
    two = measure(commands, tmp_path / "b", *words, "--model", run.parent / "model")
    # A model that has learned next to nothing has near ties, of which rounding may turn one or two of six round.
    assert one["scores"] == pytest.approx(two["scores"], abs=2 / 6) and one["settings"]["chance"] == 1 / 6
    assert set(one["scores"]) == {
        f"{way}/{name}" for way in ("text_to_picture", "picture_to_text") for name in ("accuracy", "rank")
    }
    done = commands.run("tools/evaluate.py", *words, "--pairs", 500, "--checkpoint", run, "--output", tmp_path / "c")
    assert_refused(done, "are missing", "no average of a part", "lower --pairs")


def test_too_many_pairs_are_refused_before_any_is_measured(run, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "both_directions", lambda *_: pytest.fail("measured"))
    words = ["--task", "retrieval", "--data", tiny_data.heldout, "--model", run.parent / "model", "--pairs", 10**5]
    with pytest.raises(UserError, match="are missing .*: no average of a part: lower --pairs"):
        evaluate.main([*map(str, words), "--output", str(tmp_path / "x")])


def test_bad_input_is_one_line(commands, run, tiny_data, tmp_path):
    def refused(*parts: str, arguments) -> None:
        assert_refused(commands.run("tools/evaluate.py", "--output", tmp_path / "x", *arguments), *parts)
        assert not (tmp_path / "x").exists()

    model = run.parent / "model"
    refused("one of them", arguments=["--task", "heldout", "--model", model, "--checkpoint", run])
    (tmp_path / "file").touch()
    direct = ["--task", "heldout", "--checkpoint", run]
    refused("--output", "is a file: give another folder", arguments=[*direct, "--output", tmp_path / "file" / "x"])
    refused("no run whose held-out shards are known", "--data", arguments=["--task", "heldout", "--model", model])
    refused("no manifest.json", arguments=["--task", "heldout", "--model", model, "--data", tmp_path])
    refused("needs --data", arguments=["--task", "retrieval", "--model", model])
    refused("means nothing", "--guidance", arguments=["--task", "retrieval", "--model", model, "--guidance", 2])


def test_a_process_of_its_own_says_nothing_beside_the_error(tmp_path):
    """megatron-core's warnings at import are not heard in the process that the other tests share."""
    command = [
        "tools/evaluate.py",
        "--task",
        "heldout",
        "--model",
        tmp_path,
        "--config",
        tmp_path / "run.yaml",
        "--output",
        tmp_path,
    ]
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "no config.json" in done.stderr, done.stderr


def test_both_ways_to_open_a_model_give_each_target_the_same_loss(run, tiny_data):
    """What retrieval ranks by, in rows of several documents, before any near tie is decided."""
    from argparse import Namespace

    import torch

    from pretrain.data import heldout_dataset
    from pretrain.tasks import tokenize_prompts
    from tools.evaluation.losses import open_for_losses, row_settings

    args = {
        "device": "cpu",
        "dtype": "",
        "config": run / "config.yaml",
        "data": None,
        "sequence_length": 512,
        "rows": 1,
    }
    found = []
    for which in ({"checkpoint": run, "model": None}, {"checkpoint": None, "model": run.parent / "model"}):
        opened, losses, _ = open_for_losses(Namespace(**args, **which))
        data, _ = row_settings(Namespace(**args, **which), opened.folder)
        tokenized = tokenize_prompts(opened.encode, opened.vocabulary, opened.templates, opened.markup)
        found.append(losses(heldout_dataset(data, tokenized)[0]))
    assert len(found[0]) > 100 and torch.allclose(*found, atol=1e-4, rtol=0) and len(found[0].unique()) > 50


def test_a_model_whose_losses_are_no_numbers_has_no_scores(commands, run, tiny_data, tmp_path):
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(run.parent / "model", model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    for task in (["heldout", "--rows", 1], ["retrieval", "--pairs", 2]):
        words = ["--task", *task, "--model", model, "--data", tiny_data.heldout, "--output", tmp_path / "x"]
        done = commands.run("tools/evaluate.py", *words)
        assert done.code == 1 and str(model) in done.err and "loss is nan" in done.err, done.err
    assert not (tmp_path / "x").exists()


def test_a_result_of_other_settings_is_told_and_a_file_that_is_none_refused(commands, run, tiny_data, tmp_path):
    words = ["--task", "heldout", "--checkpoint", run, "--output", tmp_path, "--rows"]
    for rows, told in ((1, False), (1, False), (2, True)):
        done = commands.run("tools/evaluate.py", *words, rows)
        assert done.code == 0 and ("rows is 1 there, 2 now" in done.err) == told, done.err
    (tmp_path / "heldout.json").write_text("notes of mine")
    assert_refused(commands.run("tools/evaluate.py", *words, 1), "heldout.json")
    assert (tmp_path / "heldout.json").read_text() == "notes of mine"
