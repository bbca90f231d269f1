"""Former names of configuration keys: taken, told in a line, refused beside the names of today."""

import pytest
import yaml

from pretrain.config import dump_config, load_config
from pretrain.config_names import FORMER_NAMES, OTHER_NAMES, with_current_names
from pretrain.system.errors import UserError

DEMO = "pretrain/configs/demo.yaml"
CURRENT = {old: f"{old.partition('.')[0]}.{new}" for old, new in FORMER_NAMES.items()}


def test_a_file_of_former_names_gives_the_same_run_and_tells_the_new_ones_once(tmp_path, capsys, monkeypatch):
    values = yaml.safe_load(dump_config(load_config(DEMO)))
    capsys.readouterr()
    for old, new in FORMER_NAMES.items():
        section, _, key = old.partition(".")
        values[section][key] = values[section].pop(new)
    path = tmp_path / "former.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    assert load_config(path) == load_config(DEMO)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"note: {path}: {old} is called {CURRENT[old]} now (the former name is still taken)" for old in FORMER_NAMES
    ]
    monkeypatch.setenv("RANK", "1")
    load_config(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("old", FORMER_NAMES)
def test_former_names_on_the_command_line_come_before_the_file(old, capsys):
    value = "en-de-zh" if "wordings" in old else "16"
    assert load_config(DEMO, [f"{old}={value}"]) == load_config(DEMO, [f"{CURRENT[old]}={value}"])
    assert f"command line: {old} is called {CURRENT[old]} now" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=f"command line: {old} is the former name of {CURRENT[old]}, and both are given"
    ):
        load_config(DEMO, [f"{old}={value}", f"{CURRENT[old]}={value}"])


def test_former_names_in_a_section_of_the_command_line(capsys):
    assert load_config(DEMO, ["zero={keep_whole: 16}"]) == load_config(DEMO, ["zero.param_persistence_threshold=16"])
    assert "command line: zero.keep_whole is called zero.param_persistence_threshold now" in capsys.readouterr().err
    with pytest.raises(UserError, match="command line: zero.keep_whole is the former name"):
        load_config(DEMO, ["zero={keep_whole: 16}", "zero.param_persistence_threshold=16"])


def test_a_file_with_both_names_is_refused(tmp_path):
    values = yaml.safe_load(dump_config(load_config(DEMO)))
    values["data"]["row_length"] = 64
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="both.yaml: data.row_length is the former name of data.sequence_length"):
        load_config(tmp_path / "both.yaml")


def test_values_that_are_no_mapping_stay_as_they_are():
    assert with_current_names(["a"]) == (["a"], []) and with_current_names({"data": 3}) == ({"data": 3}, [])


def test_names_of_other_programs_are_no_names_of_today():
    config = yaml.safe_load(dump_config(load_config(DEMO)))
    assert not [name for name, key in OTHER_NAMES.items() if name in config[key.partition(".")[0]]]
