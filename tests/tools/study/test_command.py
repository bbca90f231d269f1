"""Command line of the study: reports of folders that hold one, and options that a report does not read."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from pretrain.system.errors import UserError
from tests.commands import assert_refused
from tools.study.plan import ARMS, PRESETS
from tools.study.run import check_reported_study, check_same_study

SCRIPT = "tools/run_study.py"


@pytest.mark.parametrize("option", [("--only", 2), ("--jobs", 3), ("--packages", "x")])
def test_an_option_of_training_beside_report_is_refused(commands, tmp_path, option):
    done = commands.run(SCRIPT, "--report", "--folder", tmp_path, *option)
    assert done.code == 2 and f"{option[0]} changes nothing of --report" in done.err


def test_a_report_is_of_a_folder_that_holds_the_study(commands, tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        assert_refused(commands.run(SCRIPT, "--report", "--folder", folder), f"{folder}/study.json", "no study")
    assert not (tmp_path / "none").exists() and not any(tmp_path.iterdir())
    plan = json.loads(json.dumps({"preset": asdict(PRESETS["full"]), "arms": ARMS, "sources": [], "data": {}}))
    (tmp_path / "study.json").write_text(json.dumps(plan))
    assert_refused(commands.run(SCRIPT, "--report", "--folder", tmp_path), "study with another preset")
    check_reported_study(tmp_path, {key: plan[key] for key in ("preset", "arms")})


def test_a_study_begins_in_a_folder_of_its_own(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {}")
    with pytest.raises(UserError, match="holds no study, but config.yaml: choose another --folder"):
        check_same_study(tmp_path, {"arms": 1})
    assert not (tmp_path / "study.json").exists()
    with pytest.raises(UserError, match="config.yaml is a file: choose another --folder"):
        check_same_study(tmp_path / "config.yaml", {"arms": 1})
