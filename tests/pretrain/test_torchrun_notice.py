"""What a run under torchrun says about the time it has for saving."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pretrain.torchrun import SECONDS, STARTED_BY_TORCHRUN, notice

UNDER = {STARTED_BY_TORCHRUN: "none"}


@pytest.mark.parametrize("launcher", [[], ["torchrun", "--nproc-per-node", "2", "train.py"]])
def test_under_torchrun_the_seconds_are_told(launcher):
    assert "30 s" in notice(UNDER, launcher) and "--shutdown-timeout" in notice(UNDER, launcher)


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, []),
        (UNDER | {SECONDS: "90"}, []),
        (UNDER, ["torchrun", "--shutdown-timeout", "90", "train.py"]),
        (UNDER, ["torchrun", "--shutdown-timeout=90", "train.py"]),
        (UNDER, ["torchrun", "--shutdown_timeout=90", "train.py"]),
    ],
)
def test_who_has_chosen_is_not_told(environment, launcher):
    assert notice(environment, launcher) == ""


def test_the_command_line_of_the_parent_is_read(tmp_path):
    """A process asks for that of the one that started it."""
    child = "from pretrain.torchrun import launcher_words; print(launcher_words())"
    parent = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", parent, "--shutdown-timeout", "77"], capture_output=True, text=True, check=True
    )
    assert "'--shutdown-timeout', '77'" in done.stdout
