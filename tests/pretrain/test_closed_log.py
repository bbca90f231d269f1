"""A log that nobody reads any more, as after `train.py | head -1`: the run goes on, and its folder has all of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from pretrain.stop import Stop
from pretrain.system.logs import LOGGER
from tests.commands import ROOT
from tests.pretrain.tiny_run import STEPS, checkpoint_names, write_config


class Closed:
    """A stream whose reader has left."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_neither_a_line_nor_a_signal_ends_a_run_without_a_reader(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", Closed())
    LOGGER.info("step 1")
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
    monkeypatch.undo()
    LOGGER.info("step 2")  # read again
    assert stop.asked and "no room for 1 lines" in capsys.readouterr().out


def test_a_run_whose_reader_leaves_is_done_and_saved(tiny_data, tmp_path):
    """It ended at the next line, with exit code 0 and without a checkpoint."""
    command = [sys.executable, "pretrain/train.py", "--config", write_config(tiny_data, tmp_path / "run")]
    with open(tmp_path / "errors", "w") as errors:
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
        run.stdout.readline()
        run.stdout.close()
        assert run.wait(timeout=600) == 0
    assert checkpoint_names(tmp_path / "run")[-1] == f"step_{STEPS:08d}"
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == STEPS
    assert (tmp_path / "errors").read_text() == ""
