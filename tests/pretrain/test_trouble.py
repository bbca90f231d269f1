"""Steps that are no good in a whole run: left out, gone back from, given up on; and the same after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pretrain import checkpoint
from pretrain.config import ResilienceSection
from pretrain.engines import StepFigures
from pretrain.progress import Progress
from tests.pretrain import checkpoint_jobs
from tests.pretrain.test_parallel_run import assert_same_tensors, trained, write_config
from tests.pretrain.tiny_run import checkpoint_names, read_metrics

ENGINES = {"megatron": {}, "zero3": {"zero": {"param_persistence_threshold": 0}}}
STEPS, ROWS = 8, 2  # rows of a step
OPTIONS = {"bad_steps": 2, "window": 4}


def run_of(world, data, run: Path, bad: list[int], engine: str = "megatron", ranks: int = 2, **options) -> str:
    """Train into `run` with rows whose gradient is not finite -> what rank 0 printed."""
    changes = {
        "run": {"engine": engine, "steps": STEPS},
        "resilience": options,
        "checkpoint": {"every": 2, "keep": 9},
        **ENGINES[engine],
    }
    config = write_config(data, run, {}, **changes)
    world.run(checkpoint_jobs.import_engines, ranks)
    found = world.run(checkpoint_jobs.train_run_with_bad_rows, ranks, config=config, overrides=[], bad=bad)
    assert [code for code, _, _ in found] == [0] * ranks
    return found[0][1]


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def assert_same_run(run: Path, reference: Path) -> None:
    assert read_metrics(run) == read_metrics(reference)
    ours, theirs = (checkpoint.folder_of(folder, STEPS) for folder in (run, reference))
    assert_same_tensors(ours, theirs)
    assert checkpoint.read_state(ours) == checkpoint.read_state(theirs)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_step_is_left_out_and_counted_also_after_a_kill(world, tiny_data, tmp_path, engine):
    """Of step 3 one row is bad, on one of two ranks."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    printed = run_of(world, tiny_data, whole, [5], engine)
    assert printed.count("step 3 (rows 4 to 5) is left out: its gradient is not finite") == 1
    assert "8 of 8 steps done, 1 of them left out as bad steps" in printed
    assert [line["train/bad_steps"] for line in trained(whole)] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert ["train/grad_norm" in line for line in trained(whole)] == [step != 3 for step in range(1, STEPS + 1)]
    state = checkpoint.read_state(checkpoint.folder_of(whole, STEPS))
    assert (state["step"], state["updates"], state["rows"]) == (8, 7, 16)
    assert [(event["event"], event["step"]) for event in events(whole)] == [("bad step", 3)]
    for kept in (2, 4) if engine == "megatron" else (4,):  # before it and after it, which no engine knows of
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        for later in range(kept + 2, STEPS + 1, 2):
            shutil.rmtree(checkpoint.folder_of(run, later))
        assert f"at step {kept}, row {2 * kept}" in run_of(world, tiny_data, run, [5], engine)
        assert_same_run(run, whole)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_goes_back_and_leaves_the_rows_out_also_after_a_kill(world, tiny_data, tmp_path, engine):
    """Steps 5 and 6 are bad: on from step 4 with the rows after theirs."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    printed = run_of(world, tiny_data, whole, [8, 11], engine, **OPTIONS)
    assert "going back from step 6 to step_00000004, without rows 8 to 11" in printed
    assert [line["step"] for line in trained(whole)] == list(range(1, STEPS + 1))
    assert [line["train/rows"] for line in trained(whole)] == [2, 4, 6, 8, 14, 16, 18, 20]
    state = checkpoint.read_state(checkpoint.folder_of(whole, STEPS))
    assert state["went_back"] == [{"from": 6, "to": 4, "left_out": [8, 12]}]
    assert (state["updates"], state["rows"], state["bad"]) == (8, 20, [])
    assert [event["event"] for event in events(whole)] == ["bad step", "bad step", "went back"]
    for kept in (4, 6) if engine == "megatron" else (4,):  # right after it went back, and later
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        for later in range(kept + 2, STEPS + 1, 2):
            shutil.rmtree(checkpoint.folder_of(run, later))
        assert f"at step {kept}, row {kept * 2 + 4}" in run_of(world, tiny_data, run, [8, 11], engine, **OPTIONS)
        assert_same_run(run, whole)


def test_a_run_that_stays_bad_stops_with_a_report(world, tiny_data, tmp_path):
    """Back to step 4, which is bad from there on, so back to step 2, and then no more."""
    run = tmp_path / "run"
    with pytest.raises(AssertionError, match="RunFailed: .*went back 2 times already") as caught:
        run_of(world, tiny_data, run, list(range(8, 100)), **OPTIONS)
    assert "ReportedByOtherRank: 1" in str(caught.value) and str(caught.value).count("RunFailed: ") == 1
    report = json.loads((run / "trouble.json").read_text())
    assert [(back["from"], back["to"]) for back in report["went_back"]] == [(6, 4), (6, 2)]
    assert report["bad"] == [3, 4] and report["rows"] == 20
    assert checkpoint_names(run) == ["step_00000002"]


def figures(loss: float, updated: bool = True) -> StepFigures:
    return StepFigures(loss * 10, 0.0, 10, 0, 1.0, updated)


def test_a_spike_is_measured_against_the_last_good_steps():
    options = ResilienceSection(spike=4.0, window=4, bad_steps=3)
    progress = Progress()
    assert progress.sound(figures(100.0), options)  # there is nothing to measure it against yet
    for loss in (2.0, 2.2, 1.8, 2.0):
        progress.note(figures(loss), 4, options)
    assert progress.losses == pytest.approx([2.0, 2.2, 1.8, 2.0])
    assert progress.sound(figures(2.5), options) and not progress.sound(figures(2.6), options)  # 2 + 4 x 0.141
    assert progress.sound(figures(0.1), options)
    assert not progress.sound(figures(float("nan")), options) and not progress.sound(figures(float("inf")), options)
    progress.note(figures(9.0, updated=False), 4, options)
    assert progress.losses[-1] == pytest.approx(2.0) and progress.bad == [5]  # what was left out is no measure
    assert Progress.of(json.loads(json.dumps(progress.state()))) == progress


def test_bad_steps_are_counted_in_a_window():
    options = ResilienceSection(window=4, bad_steps=2)
    progress = Progress()
    for bad in (True, False, False, False, True, False):
        progress.note(figures(2.0, updated=not bad), 4, options)
        assert not progress.too_many(options)
    progress.note(figures(2.0, updated=False), 4, options)
    assert progress.too_many(options) and progress.bad == [5, 7] and (progress.step, progress.updates) == (7, 4)


def test_a_checkpoint_of_before_has_steps_and_rows_only():
    assert Progress.of({"step": 7, "rows": 14, "plan": "p", "vq": "v"}) == Progress(step=7, rows=14, updates=7)
