"""What a run folder says of the start before: settings that changed, a model that is another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain import checkpoint
from pretrain.config import dump_config, load_config
from pretrain.coordination import Coordinator
from pretrain.run_folder import check_model, hold, resume, settings_changed
from pretrain.system.errors import UserError
from tests.commands import ROOT
from tests.model.tiny_training import training_config


def config(*overrides: str):
    return load_config(str(ROOT / "pretrain/configs/demo.yaml"), [*overrides])


def test_settings_that_changed_since_the_last_start_are_named_with_both_values(tmp_path: Path):
    assert settings_changed(tmp_path, config()) == ""
    (tmp_path / "config.yaml").write_text(dump_config(config()))
    assert settings_changed(tmp_path, config()) == settings_changed(tmp_path, config("run.folder=elsewhere")) == ""
    told = settings_changed(tmp_path, config("run.init_from=work/start"))
    assert told == 'run.init_from "work/start" (was ""; read at step 0 alone)'
    before = config()
    told = settings_changed(
        tmp_path, config("log.every=7", "optim.lr=0.25", "run.steps=17", "data.global_batch_size=3")
    )
    assert told == (
        f"run.steps 17 (was {before.run.steps}), data.global_batch_size 3 (was {before.data.global_batch_size}), "
        f"optim.lr 0.25 (was {before.optim.lr}), log.every 7 (was {before.log.every})"
    )
    many = settings_changed(
        tmp_path,
        config(
            *(
                f"optim.{key}=0.125"
                for key in ("lr", "final_lr", "dropout", "clip_grad", "weight_decay", "beta1", "beta2")
            )
        ),
    )
    assert many.endswith("and 1 more")


def test_a_key_that_an_earlier_release_did_not_write_down_had_its_default(tmp_path: Path):
    before = config("optim.decay_embeddings=true")
    record = dump_config(before)
    (tmp_path / "config.yaml").write_text(record.replace("  decay_embeddings: true\n", ""))
    assert settings_changed(tmp_path, before) == ""
    told = settings_changed(tmp_path, config("optim.decay_embeddings=false"))
    assert told == "optim.decay_embeddings False (was True)"
    (tmp_path / "config.yaml").write_text(record.replace("precision: fp32", "precision: fp99"))  # refused today
    told = settings_changed(tmp_path, config("optim.lr=0.25", "optim.decay_embeddings=true"))
    assert told == 'run.precision "fp32" (was "fp99"), optim.lr 0.25 (was 0.003)'


@pytest.mark.parametrize("content", ["", "[1", "run: 3", "\x00"])
def test_a_damaged_record_of_settings_is_no_error(tmp_path: Path, content: str):
    (tmp_path / "config.yaml").write_text(content)
    assert settings_changed(tmp_path, config()) == ""


def test_a_wrong_image_token_offset_is_named_before_what_follows_from_it(tmp_path: Path):
    model = training_config()
    (tmp_path / "model.json").write_text(json.dumps(model.to_dict()))
    assert check_model(tmp_path, model, "x")["image_token_offset"] == model.image_token_offset
    other = dataclasses.replace(
        model, image_token_offset=model.image_token_offset + 64, vocab_size=model.vocab_size + 64
    )
    with pytest.raises(UserError) as refused:
        check_model(tmp_path, other, "remedy")
    words = f"(image_token_offset {model.image_token_offset} there, {other.image_token_offset} here, vocab_size "
    assert words in str(refused.value) and str(refused.value).endswith("remedy")


def run_with(folder: Path, state: dict) -> SimpleNamespace:
    """A run folder with one checkpoint of this state -> the part of its data that a resume looks at first."""
    checkpoint.publish(folder, 4, lambda _: None, state, keep=2)
    return SimpleNamespace(train=SimpleNamespace(plan=SimpleNamespace(fingerprint="rows")))


@pytest.mark.parametrize(
    "state", [{"made_from": "Qwen"}, {"step": "4", "rows": 8, "plan": "rows"}, {"step": 4, "rows": 8}]
)
def test_a_start_among_the_checkpoints_of_a_run_is_refused(tmp_path: Path, state: dict):
    """As tools/convert_from_hf.py makes one: it has weights, and neither a step nor rows to go on from."""
    data = run_with(tmp_path, state)
    with pytest.raises(UserError, match="no checkpoint of a run.*run.init_from"):
        resume(config(), tmp_path, None, data, Coordinator())


def test_a_run_whose_checkpoints_are_gone_says_that_it_begins_again(tmp_path: Path, capsys):
    assert resume(config(), tmp_path, None, None, Coordinator()).step == 0 and not capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 6}\n')
    assert resume(config(), tmp_path, None, None, Coordinator()).step == 0
    said = capsys.readouterr().out
    assert "has no checkpoint" in said and "ends with step 6" in said and "begins at step 0" in said


@pytest.mark.parametrize("name", ["run", "file/run", "x" * 300])
def test_a_run_folder_that_cannot_be_one_is_one_line(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("")
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="run.folder .*choose another run.folder"):
        hold(tmp_path / name)
