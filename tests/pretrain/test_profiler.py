"""Tracing that cannot be finished ends no run, and is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pretrain.profiler import Profiler, check_whole


def traced(folder: Path, steps: int, made: int) -> list[str]:
    """What a start says that traces `steps` steps and makes `made`."""
    said: list[str] = []

    def log(level: int, line: str) -> None:
        said.append(f"{logging.getLevelName(level)} {line}")

    profiler = Profiler(folder, steps, first_step=10)
    for _ in range(made):
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.step(log)
    profiler.close(log)
    return said


def test_a_start_that_is_shorter_than_what_was_asked_for_says_so(tmp_path):
    assert traced(tmp_path / "profile", 3, 4) == [
        "WARNING log.profile_steps: this start ended 1 steps too early for a trace"
    ]
    assert not (tmp_path / "profile").exists()


def test_a_folder_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path):
    (tmp_path / "profile").write_text("in the way")
    (said,) = traced(tmp_path / "profile", 1, 5)
    assert said.startswith(f"WARNING {tmp_path}/profile/steps_13-13.json: could not be written (")


def test_nothing_is_traced_unless_asked_for(tmp_path):
    assert traced(tmp_path / "profile", 0, 5) == [] and not (tmp_path / "profile").exists()
    (said,) = traced(tmp_path / "profile", 2, 6)
    assert said.startswith(f"INFO {tmp_path}/profile/steps_13-14.json is written")


def test_a_trace_that_is_cut_off_is_told(tmp_path):
    traced(tmp_path, 1, 5)
    trace = tmp_path / "steps_13-13.json"
    check_whole(trace)
    trace.write_bytes(trace.read_bytes()[:-2000])
    with pytest.raises(OSError, match="cut off"):
        check_whole(trace)
