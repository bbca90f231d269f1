"""Variables of a launcher: what is left over from another program is refused, and never silences a run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pretrain.launch import launched_processes
from pretrain.system.errors import UserError
from tests.commands import ROOT, Finished, assert_refused

MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4"}, 1),
        ({"RANK": "0"}, 1),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 1),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MASTER}, 4),
    ],
)
def test_processes_are_those_of_the_launcher(environment, processes):
    assert launched_processes(environment) == processes


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"RANK": "1"}, "RANK=1 and WORLD_SIZE=not set"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK=1 and WORLD_SIZE=1"),
        ({"RANK": "first"}, "RANK='first'"),
        ({"RANK": "²"}, "RANK='²'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE='x'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2 and no MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}, "no MASTER_PORT"),
    ],
)
def test_what_is_left_over_from_another_program_is_refused(environment, part):
    with pytest.raises(UserError) as caught:
        launched_processes(environment)
    assert part in str(caught.value) and "torchrun" in str(caught.value)


def test_a_rank_that_is_left_over_silences_no_error():
    """Rank 1 leaves messages to rank 0, so that a wrong key ended with exit code 2 and not a word."""
    command = [sys.executable, "pretrain/train.py", "--config", "pretrain/configs/demo.yaml", "optim.lrr=1"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "RANK": "1"}, capture_output=True, text=True)
    assert_refused(Finished(done.returncode, done.stdout, done.stderr), "RANK=1", "unset RANK")
