"""Checkpoints go both ways between the two supported versions of megatron-core: `make test-megatron` runs this.

This process has the newer one first on its path, unpacked; a process without PYTHONPATH has the environment's own.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain import checkpoint
from tests.commands import ROOT
from tests.pretrain.tiny_run import read_metrics, write_config

NEWER, OLDER = "0.19.2", "0.16.1"
STEPS = 4
OPTIONS = (f"run.steps={STEPS}", "optim.decay=constant", "log.heldout_every=0", "log.heldout_rows=1")


def environment(version: str) -> dict[str, str]:
    """That of a process with this version."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return found | ({"PYTHONPATH": os.environ["PYTHONPATH"]} if version == NEWER else {})


def trained(version: str, config: Path, *overrides: str) -> str:
    command = [sys.executable, "pretrain/train.py", "--config", str(config), *overrides]
    done = subprocess.run(command, cwd=ROOT, env=environment(version), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_this_process_has_the_newer_one_and_the_environment_the_older():
    import megatron.core

    assert importlib.metadata.version("megatron-core") == NEWER
    # 0.19.2 takes the commit of the repository that it lies in for its own: "0.19.2+" and ours, in a clone
    assert megatron.core.__version__.partition("+")[0] == NEWER
    code = "import importlib.metadata; print(importlib.metadata.version('megatron-core'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(OLDER), capture_output=True, text=True)
    assert done.stdout.strip() == OLDER


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory) -> Path:
    """A run of the older version from start to end."""
    run = tmp_path_factory.mktemp("whole") / "run"
    trained(OLDER, write_config(tiny_data, run), *OPTIONS)
    return run


@pytest.mark.parametrize("first, second", [(NEWER, NEWER), (OLDER, NEWER), (NEWER, OLDER)])
def test_the_losses_are_the_same_whichever_version_begins_and_goes_on(tiny_data, tmp_path, whole, first, second):
    """Optimizer state included. A run that goes on with another version says so."""
    run = tmp_path / "run"
    config = write_config(tiny_data, run)
    if first != second:
        trained(first, config, *OPTIONS, "run.steps=2")
    out = trained(second, config, *OPTIONS)
    if first != second:
        assert "at step 2, row 4" in out and f"megatron-core {first}, now {second}" in out
    ours, theirs = ([line for line in read_metrics(folder) if "train/loss" in line] for folder in (run, whole))
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for here, there in zip(ours, theirs, strict=True):
        assert here == pytest.approx(there, rel=2e-5)
    assert checkpoint.verify(checkpoint.folder_of(run, STEPS)) is None
