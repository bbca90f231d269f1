"""Cells are done once, failures are shown and tried again, and the report says both.

The plan compares like with like.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from model.config import ModelConfig, layer_kinds
from pretrain.config import load_config
from pretrain.system.errors import UserError
from tests.commands import ROOT
from tools.study import cells
from tools.study import run as run_study_library
from tools.study.cells import best_rates, do_cell
from tools.study.compare import finished, mean_and_width
from tools.study.plan import (
    ARMS,
    LAYERS,
    PRESETS,
    SUGGESTED,
    WORDS,
    Cell,
    main_cells,
    same_arm,
    settings,
    suggested_cells,
    tuning_cells,
)
from tools.study.report import collect, write

PRESET = dataclasses.replace(PRESETS["quick"], seeds=(0, 1), learning_rates=(0.1, 0.2, 0.3), steps=10)
CELLS = len(ARMS) * (3 + 1)  # three rates with the first seed, the best of them with the second one
CALLS = CELLS + 2 * len(ARMS)  # what is compared is measured, too
PATHS = {
    "tokenizer": "t",
    "pictures": "p",
    "texts": "x",
    "heldout": "h",
    "sources": [{"path": "p/train", "weight": 1.0}],
}


def kinds_of(arm: str) -> tuple[str, ...]:
    model = {"shallow": 0, "deep": 0, "every": 0, **ARMS[arm]}
    return layer_kinds(LAYERS, model["shallow"], model["deep"], model["kind"], model["every"])


def test_the_uni_x_arms_have_equally_many_separated_layers_and_the_others_what_their_names_say():
    assert [kinds_of(arm).count("separated") for arm in ("unix_shallow", "unix_deep", "unix_both")] == [3, 3, 3]
    assert set(kinds_of("mot")) == {"mot"} and set(kinds_of("shared")) == {"shared"}
    assert kinds_of("moe_hard") == ("shared", "moe_hard") * 3
    assert same_arm({"shallow": 2, "deep": 1}) == "unix_both" and same_arm({"shallow": 1, "deep": 1}) is None


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_cells_differ_in_their_layers_seed_and_rate_alone_and_their_files_load(preset, tmp_path):
    main = list(main_cells(preset, dict.fromkeys(ARMS, preset.learning_rates[1])))
    cells = {cell.name: cell for cell in [*tuning_cells(preset), *main]}
    assert len(cells) == len(ARMS) * (len(preset.learning_rates) + len(preset.seeds) - 1)
    loaded = {}
    for name, cell in cells.items():
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings(preset, cell, {**PATHS, "run": name})))
        loaded[name] = load_config(tmp_path / "c.yaml")
    compared = [loaded[cell.name] for cell in main]
    assert len(compared) == len(ARMS) * len(preset.seeds) and {one.run.seed for one in compared} == set(preset.seeds)
    same = [
        dataclasses.replace(
            one,
            run=dataclasses.replace(one.run, folder="", seed=0),
            model=dataclasses.replace(one.model, kind="shared", shallow=0, deep=0, every=0),
        )
        for one in compared
    ]
    assert all(one == same[0] for one in same)
    assert {one.run.seed for one in loaded.values() if one.optim.lr != preset.learning_rates[1]} == {preset.seeds[0]}


class Commands:
    """Stands for the project's commands: writes what they leave behind, and fails where it is told to."""

    def __init__(self, fail: str = "", better: dict[str, float] | None = None):
        self.fail, self.better, self.calls = fail, better or {}, []

    def __call__(self, command: list[str], log: Path) -> int:
        place = log.parent
        self.calls.append((place.name, command[0]))
        with open(log, "a", encoding="utf-8") as file:
            print(f"$ {command[0]}\nthe reason", file=file)
        if self.fail and self.fail in f"{place.name} {command[0]}":
            return 1
        steps = yaml.safe_load((place / "config.yaml").read_text())["run"]["steps"]
        rate = yaml.safe_load((place / "config.yaml").read_text())["optim"]["lr"]
        rate += self.better.get(place.name, 0.0)
        if "train" in command[0]:
            (place / "run").mkdir(exist_ok=True)
            losses = {"heldout/loss": 2.0 + rate, "heldout/loss_text": 1.0 + rate, "heldout/loss_image": 3.0}
            lines = [{"step": 0, **losses}, {"step": steps, "tok_per_sec_per_gpu": 100.0}, {"step": steps, **losses}]
            (place / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (place / "run/starts.jsonl").write_text(json.dumps({"commit": "abc", "changed_files": []}) + "\n")
        else:
            bonus = 0.5 if "unix_both" in place.name else 0.01 * int(place.name[-1])
            chosen = {"accuracy": 0.25, "rank": 0.5, "candidates": 4}
            pairs = {"text_to_picture": chosen, "picture_to_text": chosen}
            losses = {name: {"loss": 3.0 - bonus, "tokens": 9} for name in ("text_en", "text_de", "names", "pictures")}
            values = {
                "losses": losses,
                "pairs": {"train": pairs, "heldout": pairs},
                "conflict": 0.4,
                "parameters": {"total": 20, "activated": 10},
                "checkpoint": "c",
            }
            (place / "measures.json").write_text(json.dumps(values))
        return 0


def run_all(folder: Path, commands: Commands) -> list[dict]:
    """All cells -> those that are compared."""
    tuned = [do_cell(folder, PRESET, cell, PATHS, measured=False, run=commands) for cell in tuning_cells(PRESET)]
    return [
        do_cell(folder, PRESET, cell, PATHS, run=commands) for cell in main_cells(PRESET, best_rates(tuned, PRESET))
    ]


def test_what_is_done_is_not_done_again_and_the_best_rate_is_taken(tmp_path):
    commands = Commands()
    results = run_all(tmp_path, commands)
    assert len(results) == 2 * len(ARMS) and {r["cell"]["learning_rate"] for r in results} == {0.1}
    assert len(commands.calls) == len(set(commands.calls)) == CALLS
    again = Commands(fail="train")
    assert [r["heldout"] for r in run_all(tmp_path, again)] == [r["heldout"] for r in results] and not again.calls


def test_a_failed_cell_is_shown_with_its_reason_and_tried_again(tmp_path):
    results = run_all(tmp_path, Commands(fail="mot-lr0.1-seed1 tools/study_measure.py"))
    failed = [result for result in results if "failed" in result]
    assert [f"{r['cell']['arm']} {r['cell']['seed']}" for r in failed] == ["mot 1"]
    assert "exit code 1: python tools/study_measure.py" in failed[0]["failed"] and failed[0]["log"][-1] == "the reason"
    write(tmp_path / "report", tmp_path, PRESET, collect(tmp_path, PRESET), {"entropy": "no", "speed": "none"})
    report = (tmp_path / "report/report.md").read_text()
    for words in ("Not complete: mot-lr0.1-seed1 failed", "Not measured: no.", "Speed was not measured: none."):
        assert words in report
    assert "**failed**: exit code 1" in (tmp_path / "report/details.md").read_text()
    assert "mot-lr0.1-seed1,compared,mot,1,0.1,,state,failed" in (tmp_path / "report/results.csv").read_text()
    commands = Commands()
    assert not any("failed" in result for result in run_all(tmp_path, commands))
    assert commands.calls == [("mot-lr0.1-seed1", "pretrain/train.py"), ("mot-lr0.1-seed1", "tools/study_measure.py")]
    assert not (tmp_path / "mot-lr0.1-seed1/failed.json").exists()


def test_an_arm_that_was_tuned_less_than_the_others_is_not_compared(tmp_path):
    results = run_all(tmp_path, Commands(fail="mot-lr0.2-seed0"))
    assert {result["cell"]["arm"] for result in results} == set(ARMS) - {"mot"}
    found = {result["name"]: result for result in collect(tmp_path, PRESET)}
    assert "failed" in found["mot-lr0.2-seed0"] and found["mot-seed0"]["missing"] and found["mot-seed0"]["compared"]


def test_the_best_rate_is_compared_and_the_others_are_only_trained(tmp_path):
    run_all(tmp_path, Commands(better={"shared-lr0.2-seed0": -1.0}))
    shown = {result["name"]: result for result in collect(tmp_path, PRESET)}
    assert len(shown) == CELLS and not any(result.get("missing") for result in shown.values())
    compared = {name for name, result in shown.items() if result["compared"]}
    assert {name for name in compared if name.startswith("shared-")} == {"shared-lr0.2-seed0", "shared-lr0.2-seed1"}
    assert compared == {name for name, result in shown.items() if "measures" in result} and len(compared) == 2 * len(
        ARMS
    )
    assert finished([*shown.values()])["shared"].keys() == {0, 1}
    write(tmp_path / "report", tmp_path, PRESET, [*shown.values()], {})
    details = (tmp_path / "report/details.md").read_text()
    assert "| shared transformer | 2.100 | **1.200** | 2.300 |" in details
    assert f"| 0 | 0.1 | {tmp_path}/shared-lr0.1-seed0/run | done, tried |" in details
    assert "Best at an end of the range, so that a rate beyond it might be better still: hard MoE, " in details


def test_a_measurement_that_failed_is_tried_again_without_training_and_until_then_the_cell_is_failed(tmp_path):
    name = "shared-lr0.1-seed0"
    run_all(tmp_path, Commands(fail=f"{name} tools/study_measure.py"))
    shown = {result["name"]: result for result in collect(tmp_path, PRESET)}
    assert "study_measure" in shown[name]["failed"] and "shared-lr0.1-seed1" in shown
    (tmp_path / name / "failed.json").unlink()  # as if the study had been stopped before it
    shown = {result["name"]: result for result in collect(tmp_path, PRESET)}
    assert shown[name]["missing"] and shown[name]["compared"]
    commands = Commands()
    run_all(tmp_path, commands)
    assert commands.calls == [(name, "tools/study_measure.py")]


def test_cells_run_beside_each_other_each_once_and_no_more_than_asked_for(tmp_path, monkeypatch):
    commands = Commands()
    monkeypatch.setattr(cells, "do_cell", functools.partial(do_cell, run=commands))
    arguments = argparse.Namespace(jobs=3, only=5)
    assert (
        len(run_study_library.run_cells(arguments, tmp_path, PRESET, PATHS))
        == 5
        == len(list(tmp_path.glob("*/result.json")))
    )
    arguments.only = 0
    results = run_study_library.run_cells(arguments, tmp_path, PRESET, PATHS)
    main = list(main_cells(PRESET, dict.fromkeys(ARMS, 0.1)))
    assert [Cell(**{**r["cell"], "model": ()}).name for r in results] == [
        cell.name for cell in [*tuning_cells(PRESET), *main]
    ]
    assert len(commands.calls) == len(set(commands.calls)) == CALLS


@pytest.mark.parametrize("content", ["", "[1]", "null", '{"arms": 1}'], ids=["empty", "list", "null", "another"])
def test_a_folder_of_another_study_or_of_a_damaged_one_is_refused(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path}.* --folder, or remove"):
        run_study_library.check_same_study(tmp_path, {"arms": 2})
    run_study_library.check_same_study(tmp_path / "new", {"arms": 2})
    run_study_library.check_same_study(tmp_path / "new", {"arms": 2})


@pytest.mark.parametrize("content", ["", "{}", '[["a", 1]]', "7"])
@pytest.mark.parametrize(
    "name", ["shared-lr0.1-seed0/result.json", "mot-lr0.3-seed0/failed.json", "proposal.json", "speed.json"]
)
def test_a_damaged_file_is_named_with_what_to_do_and_not_counted_as_a_result(tmp_path, monkeypatch, name, content):
    commands = Commands(fail="mot-lr0.3-seed0 pretrain/train.py")
    run_all(tmp_path, commands)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path / name}: .*remove it"):
        write(tmp_path / "report", tmp_path, PRESET, collect(tmp_path, PRESET), {})
    if name.endswith("result.json"):
        monkeypatch.setattr(cells, "do_cell", functools.partial(do_cell, run=commands))
        with pytest.raises(UserError, match=f"{tmp_path / name}: .*remove it"):
            run_study_library.run_cells(argparse.Namespace(jobs=1, only=0), tmp_path, PRESET, PATHS)


def test_an_interrupt_ends_the_study_and_begins_no_further_cell(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(cells, "do_cell", functools.partial(do_cell, run=lambda command, log: begun.append(log) or 130))
    with pytest.raises(KeyboardInterrupt):
        run_study_library.run_cells(argparse.Namespace(jobs=1, only=0), tmp_path, PRESET, PATHS)
    assert len(begun) < 2 * len(ARMS) and not list(tmp_path.glob("*/result.json"))


def test_an_interrupted_cell_is_neither_done_nor_failed(tmp_path):
    cell = next(tuning_cells(PRESET))
    with pytest.raises(KeyboardInterrupt):
        do_cell(tmp_path, PRESET, cell, PATHS, run=lambda command, log: 130)
    assert not any((tmp_path / cell.name / name).exists() for name in ("result.json", "failed.json"))


def test_a_command_ends_with_the_study_that_is_killed(tmp_path):
    script, started = tmp_path / "sleeps.py", tmp_path / "started"
    script.write_text(f"import os, time\nopen({str(started)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    call = f"from pathlib import Path; from tools.study.cells import run_command_here as run; run([{str(script)!r}], Path('log'))"
    study = subprocess.Popen([sys.executable, "-c", call], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 60
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < end and study.poll() is None
        time.sleep(0.05)
    study.send_signal(signal.SIGKILL)
    study.wait()
    child = Path(f"/proc/{started.read_text()}/stat")
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_training_that_stopped_early_is_no_result(tmp_path):
    cell = Cell("shared", (("kind", "shared"),), 0.1, 0, steps=10)
    commands = Commands()
    do_cell(tmp_path, PRESET, cell, PATHS, run=commands)
    result = tmp_path / cell.name / "result.json"
    result.unlink()

    def stops_early(command: list[str], log: Path) -> int:
        code = commands(command, log)
        metrics = log.parent / "run/metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"step": 10', '"step": 7'))
        return code

    assert "step 7, not 10" in do_cell(tmp_path, PRESET, cell, PATHS, run=stops_early)["failed"]
    assert not result.exists()


def test_the_report_tells_differences_from_noise_and_every_number_from_its_run(tmp_path):
    run_all(tmp_path, Commands())
    write(tmp_path / "report", tmp_path, PRESET, collect(tmp_path, PRESET), {})
    report, details = ((tmp_path / "report" / name).read_text() for name in ("report.md", "details.md"))
    table = report.split("| less shared transformer |")[1].split("\n\n")[0]
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert (
        lines[WORDS["unix_both"]].count("**-0.495 ± 0.064**") == 3
    )  # 0.5 less the mean of 0 and 0.01, twelve times its error
    assert "**" not in lines[WORDS["unix_shallow"]] and WORDS["shared"] not in lines
    assert "in 3 of 35 comparisons; were all arms equal, about 2 would be" in report
    assert details.split("## Differences from Uni-X 2:1")[1].count("**0.495 ± 0.064**") == 15
    cells = {
        line.split("|")[1].strip(): line for line in details.split("## Cells")[1].splitlines() if line.startswith("| ")
    }
    assert (
        cells.keys() >= {"shared-lr0.2-seed0", "shared-lr0.1-seed1"}
        and str(tmp_path / "mot-lr0.1-seed0/run") in cells["mot-lr0.1-seed0"]
    )
    results, curves = ((tmp_path / "report" / name).read_text().splitlines() for name in ("results.csv", "curves.csv"))
    assert results[0] == "cell,role,arm,seed,learning_rate,run,measure,value"
    where = f"unix_both-lr0.1-seed1,compared,unix_both,1,0.1,{tmp_path}/unix_both-lr0.1-seed1/run"
    assert f"{where},names,2.5" in results and f"{where},10,1.1,3.0" in curves
    assert any(line.startswith("shared-lr0.2-seed0,tried,shared,0,0.2,") for line in results)
    assert (tmp_path / "report/curves.png").stat().st_size > 5000


def test_intervals_are_students():
    assert mean_and_width([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / 3**0.5))
    assert mean_and_width([2.0])[1] != mean_and_width([2.0])[1]  # nan
    assert all(value != value for value in mean_and_width([float("nan"), 1.0]))  # a measure that one run does not have


def test_a_proposal_is_trained_unless_it_is_an_arm_or_nothing():
    rates = {"unix_both": 0.3}
    cells = suggested_cells(PRESET, {"shallow": 1, "deep": 1}, rates)
    assert [(cell.name, cell.learning_rate) for cell in cells] == [
        (f"{SUGGESTED}-lr0.3-seed0", 0.3),
        (f"{SUGGESTED}-lr0.3-seed1", 0.3),
    ]
    for proposal in ({"shallow": 3, "deep": 0}, {"shallow": 0, "deep": 0}):
        assert not suggested_cells(PRESET, proposal, rates)
    assert not suggested_cells(PRESET, {"shallow": 1, "deep": 1}, {})


def test_sizes_of_all_arms_can_be_built():
    for preset in PRESETS.values():
        for arm in ARMS:
            ModelConfig(
                hidden_size=preset.hidden_size,
                intermediate_size=preset.intermediate_size,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                vocab_size=96,
                image_token_offset=32,
                codebook_size=64,
                vision_start_token_id=30,
                vision_end_token_id=31,
                eos_token_id=29,
                layer_kinds=kinds_of(arm),
            )
