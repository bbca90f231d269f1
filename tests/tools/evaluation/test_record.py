"""The result that every evaluation writes: no scores of a part, and what a model card shows of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.system.errors import RunFailed, UserError
from tools.evaluation.record import (
    check_finite,
    conditions,
    make_record,
    read_record,
    replaced,
    require_all,
    write_record,
)
from tools.export.model_card import evaluation

PARTS = {
    "model": {"from": "export", "fingerprint": "0" * 16},
    "data": {"prompts": "rewritten", "digest": "af10a9b8f4f1fc07"},
    "settings": {"seed": 3, "guidance": 4.0, "dtype": "float32", "batch_size": 2},
}


def test_a_part_has_no_scores():
    assert "scores" not in make_record("dpg", 3, 2, **PARTS)
    with pytest.raises(ValueError, match="2 of 3"):
        make_record("dpg", 3, 2, **PARTS, scores={"overall": 1.0})
    require_all("it", ["a", "b"], {"b", "a", "c"}, "go on")
    with pytest.raises(UserError) as error:
        require_all("it", [f"item {number}" for number in range(9)], ["item 3"], "go on")
    message = "it: 8 of 9 are missing (item 0, item 1, item 2 and 5 more): no average of a part: go on"
    assert str(error.value) == message


def test_a_result_is_read_back_and_says_what_it_was_made_with(tmp_path):
    record = make_record("dpg-scores", 3, 3, **PARTS, scores={"overall": 71.25})
    assert {"python", "torch", "transformers", "commit"} <= set(record["versions"])
    path = write_record(tmp_path / "new", record)
    assert path.name == "dpg-scores.json" and read_record(path) == record
    (tmp_path / "other.json").write_text('{"loss": 1}')
    with pytest.raises(UserError, match="no result of tools/evaluate.py"):
        read_record(tmp_path / "other.json")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_record(tmp_path / "none.json")


def test_the_model_card_shows_scores_with_their_conditions_and_refuses_a_part(tmp_path):
    path = write_record(tmp_path, make_record("dpg-scores", 3, 3, **PARTS, scores={"overall": 71.25}))
    card = evaluation(None, {"step": 0}, [path])
    how = "rewritten prompts af10a9b8, guidance 4.0, seed 3, dtype float32, 3 of 3 items"
    assert conditions(read_record(path)) == how
    assert f"| dpg-scores/overall | 71.25 | dpg-scores.json ({how}) |" in card
    assert "batch_size" not in card and "expected" not in card
    part = write_record(tmp_path, make_record("dpg", 3, 2, **PARTS))
    with pytest.raises(UserError, match="a part of dpg"):
        evaluation(None, {"step": 0}, [part])
    plain = Path(tmp_path / "figures.json")
    plain.write_text(json.dumps({"score": 0.5}))
    assert "| score | 0.5 | figures.json |" in evaluation(None, {"step": 0}, [plain])


def test_what_a_result_replaces_is_told_with_its_scores(tmp_path):
    record = make_record("heldout", 3, 3, **PARTS, scores={"loss": 2.5})
    path = tmp_path / "heldout.json"
    assert replaced(path, record) == ""
    write_record(tmp_path, record)
    assert replaced(path, record) == ""
    other = make_record("heldout", 3, 3, **{**PARTS, "settings": {**PARTS["settings"], "seed": 4}}, scores={"loss": 2})
    line = replaced(path, other)
    assert str(path) in line and "seed is 3 there, 4 now" in line and "loss 2.5" in line
    path.write_text("notes of mine")
    with pytest.raises(UserError, match="heldout.json: .*no result|cannot be read"):
        replaced(path, record)


def test_scores_are_finite_numbers():
    check_finite("model", {"loss": 1.0, "rank": 3})
    for value in (float("nan"), float("inf")):
        with pytest.raises(RunFailed, match=f"model: loss is {value}"):
            check_finite("model", {"rank": 1, "loss": value})
