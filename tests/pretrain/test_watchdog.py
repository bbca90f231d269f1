"""Processes that hang end themselves with their stacks; those that lost the others say so."""

from __future__ import annotations

import time

import pytest

from pretrain.watchdog import HUNG, Watchdog
from tests.parallel_world import World
from tests.pretrain import checkpoint_jobs
from tests.pretrain.test_parallel_run import write_config
from tests.pretrain.tiny_run import checkpoint_names

HANGS = ("resilience.hang_factor=10", "resilience.hang_seconds=4")


def test_a_hung_process_leaves_its_stacks_and_an_exit_code(commands, tiny_data, tmp_path):
    from tests.pretrain.tiny_run import write_config as one_process

    config, run = one_process(tiny_data, tmp_path / "run"), tmp_path / "run"
    arguments = ("--config", config, *HANGS)
    done = commands.run("pretrain/train.py", *arguments, hook=("tests.pretrain.kill_points", "hang_in_a_step", 4))
    stacks = run / "logs/attempt_0000/rank_0000.stacks"
    assert done.code == HUNG and str(stacks) in done.err and "no step has ended for" in done.err
    assert "wait_for_ever" in stacks.read_text() and "Thread" in stacks.read_text()
    done = commands.run("pretrain/train.py", *arguments)
    assert done.code == 0 and "at step 2" in done.out


def test_all_ranks_see_that_one_hangs(tiny_data, tmp_path):
    config = write_config(tiny_data, tmp_path / "run", {}, checkpoint={"every": 2})
    hung = World(ranks=2)
    try:
        with pytest.raises(AssertionError, match="has ended"):
            hung.run(checkpoint_jobs.train_run_and_hang, 2, config=config, overrides=list(HANGS), rank=1, step=4)
        # `run` closes the world when it sees an end: the other rank may have been ended by it
        stacks = [(tmp_path / f"run/logs/attempt_0000/rank_000{rank}.stacks").read_text() for rank in (0, 1)]
    finally:
        hung.close()
    assert "wait_for_ever" in stacks[1] and "train_step" in stacks[0] and "wait_for_ever" not in stacks[0]
    assert checkpoint_names(tmp_path / "run") == ["step_00000002"]


def test_a_lost_process_is_known_as_one():
    lost = World(ranks=2)
    try:
        with pytest.raises(AssertionError, match="rank 1 of 2 has ended"):
            lost.run(checkpoint_jobs.lose_a_process, 2, rank=1)
    finally:
        lost.close()


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
