"""Processes that hang end themselves with their stacks; those that lost the others say so."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from pretrain.watchdog import HUNG, Watchdog
from tests.pretrain.tiny_run import checkpoint_names, write_config

HANGS = ("resilience.hang_factor=10", "resilience.hang_seconds=4")
HOOKS = "tests.pretrain.kill_points"
ROOT = Path(__file__).parents[2]


def start_two(commands, config, moment: str, count: int, *overrides: str) -> list:
    """Two processes of one run, the second with a moment armed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ("pretrain/train.py", "--config", config, "data.global_batch_size=2", *overrides)
    return [
        commands.start(*arguments, hook=(HOOKS, "as_rank", 0, 2, port)),
        commands.start(*arguments, hook=(HOOKS, "as_rank", 1, 2, port, moment, count)),
    ]


def test_a_hung_process_leaves_its_stacks_and_an_exit_code(commands, tiny_data, tmp_path):
    config, run = write_config(tiny_data, tmp_path / "run"), tmp_path / "run"
    done = commands.run("pretrain/train.py", "--config", config, *HANGS, hook=(HOOKS, "hang_in_a_step", 4))
    stacks = run / "logs/attempt_0000/rank_0000.stacks"
    assert done.code == HUNG and str(stacks) in done.err and "no step has ended for" in done.err
    assert "wait_for_ever" in stacks.read_text() and "Thread" in stacks.read_text()
    done = commands.run("pretrain/train.py", "--config", config, *HANGS)
    assert done.code == 0 and "at step 2" in done.out


def test_all_ranks_see_that_one_hangs(commands, tiny_data, tmp_path):
    """The one that waits for it leaves its stacks too, and both the exit code that asks for another start."""
    config = write_config(tiny_data, tmp_path / "run")
    found = [running.wait() for running in start_two(commands, config, "hang_in_a_step", 4, *HANGS)]
    assert [done.code for done in found] == [HUNG, HUNG], found
    stacks = [(tmp_path / f"run/logs/attempt_0000/rank_000{rank}.stacks").read_text() for rank in (0, 1)]
    assert "wait_for_ever" in stacks[1] and "train_step" in stacks[0] and "wait_for_ever" not in stacks[0]
    assert checkpoint_names(tmp_path / "run") == ["step_00000002"]


def test_a_rank_that_lost_another_asks_to_be_started_again(commands, tiny_data, tmp_path):
    config, run = write_config(tiny_data, tmp_path / "run"), tmp_path / "run"
    first, second = (running.wait() for running in start_two(commands, config, "after_an_update", 3))
    assert (first.code, second.code) == (75, -9)
    assert first.err.count("error: ") == 1 and "rank 0 has lost the other processes" in first.err, first.err
    logs = [(run / f"logs/attempt_0000/rank_000{rank}.jsonl").read_text() for rank in (0, 1)]
    assert '"step": 3' in logs[0] and "Traceback" in logs[0] and '"step": 2' in logs[1] and "Traceback" not in logs[1]


def test_the_limit_follows_the_steps(tmp_path):
    dog = Watchdog(tmp_path / "stacks", factor=10.0, seconds=3.0)
    assert dog.limit() == 3.0
    for seconds in (0.1, 0.5, 0.5, 9.0):
        dog.step(seconds)
    assert dog.limit() == 5.0  # ten times the median


def test_it_sleeps_where_it_is_not_wanted(tmp_path):
    with Watchdog(tmp_path / "stacks", factor=0.0, seconds=0.05) as dog:
        time.sleep(0.3)
        assert not dog.thread.is_alive()
    assert not (tmp_path / "stacks").exists()


def test_a_hung_process_without_stderr_still_leaves_its_exit_code(tmp_path):
    (tmp_path / "file").touch()  # its stacks cannot be written, either
    code = (
        "import pathlib, sys; sys.stderr = sys.__stderr__ = None\n"
        "from pretrain import watchdog; watchdog.GRACE = 0\n"
        f"watchdog.Watchdog(pathlib.Path({str(tmp_path)!r}, 'file', 'stacks'), 1.0, 1.0)._leave(2.0)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300).returncode == HUNG
