"""The end of a command whose error another process tells, under torchrun, which ends all as soon as one has left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.system import errors

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import os, time
from pretrain.system.errors import ReportedByOtherRank, UserError, run_command

def main():
    if os.environ["RANK"] != "0":
        raise ReportedByOtherRank(2)
    time.sleep(2)
    raise UserError("the one line")

run_command(main)
"""


def test_a_slow_process_tells_before_torchrun_ends_it(tmp_path):
    """Rank 1 knows that rank 0 tells, and has nothing to do: it must not be the first to leave."""
    (tmp_path / "command.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "command.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and done.stderr.count("error: the one line") == 1, done.stderr
    assert "exitcode:2" in done.stderr.replace(" ", "")


def test_without_torchrun_it_leaves_at_once(monkeypatch):
    """Under srun nobody would end it: the exit code is that of the error, and nothing waits."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(errors, "wait_to_be_ended", lambda seconds: pytest.fail("it waited"))

    def told() -> None:
        raise errors.ReportedByOtherRank(2)

    with pytest.raises(SystemExit) as stop:
        errors.run_command(told)
    assert stop.value.code == 2


def test_a_python_without_the_environment_is_one_line(tmp_path):
    """-S: without what is installed, as the Python of whoever did not activate the environment."""
    words = ["--input", tmp_path, "--output", tmp_path / "out", "--vq", "openmoji-64", "--tokenizer", tmp_path]
    done = subprocess.run(
        [sys.executable, "-S", ROOT / "tokenization/shard_images.py", *words], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "source .venv/bin/activate" in done.stderr


def test_closed_output_streams_are_passed_over(monkeypatch):
    """`command >&-`: Python has None for the stream, and a command that had done its work ended with a traceback."""
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    with pytest.raises(SystemExit) as ended:
        errors.run_command(lambda: 0)
    assert ended.value.code == 0


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path, capsys):
    """As metrics.jsonl of a run folder: a traceback of the line that opened it told nobody what to do."""
    with pytest.raises(SystemExit) as ended:
        errors.run_command(lambda: tmp_path.read_text())
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert f"error: {tmp_path}: Is a directory: move what is in the way there" in said
