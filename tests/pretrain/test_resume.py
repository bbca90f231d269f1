"""A run that was killed, at any moment, and started again has the losses and weights of one that never stopped."""

from __future__ import annotations

import re
import signal
import time
from functools import cache
from pathlib import Path

import pytest
import torch

from pretrain import checkpoint
from pretrain.sharded_files import read_whole, stored_tensors
from tests.commands import CommandServer, Finished, Running
from tests.pretrain.tiny_run import STEPS, TinyData, checkpoint_names, read_metrics, write_config

KILLS = [  # how each start of the same command ends; checkpoints are made after steps 2, 4, 6 and 7
    ("after_an_update", 1),
    ("while_writing_a_checkpoint", 1),
    ("before_publishing_a_checkpoint", 1),
    ("after_publishing_a_checkpoint", 1),  # step 2
    ("in_a_line_of_metrics", 1),
    ("after_an_update", 2),
    ("while_removing_an_old_checkpoint", 1),  # step 6 is published by then, and half of step 2 removed
    ("after_an_update", 1),
]


class Run:
    """One run folder and the command that trains into it."""

    def __init__(self, server: CommandServer, data: TinyData, folder: Path, *overrides: str):
        self.server, self.folder = server, folder
        self.arguments = ["--config", write_config(data, folder), *overrides]

    def start(self, *hook: object) -> Running:
        hook = ("tests.pretrain.kill_points", *hook) if hook else ()
        return self.server.start("pretrain/train.py", *self.arguments, hook=hook)

    def finish(self) -> Finished:
        done = self.start().wait()
        assert done.code == 0, done.err
        return done


@cache
def uninterrupted(server: CommandServer, data: TinyData, precision: str) -> Run:
    """The run that never stops, without loader workers."""
    run = Run(server, data, server.folder / f"uninterrupted-{precision}", f"run.precision={precision}")
    run.finish()
    metrics = read_metrics(run.folder)
    trained = [line for line in metrics if "train/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert all(line["train/grad_norm"] > 0 for line in trained)
    assert len({line["train/loss"] for line in trained}) == STEPS
    assert [line["step"] for line in metrics if "heldout/loss" in line] == [0, 3, 6, 7]
    return run


def assert_same(run: Run, reference: Run) -> None:
    """Metrics but for speeds, weights, and optimizer state, to the last bit."""
    assert read_metrics(run.folder) == read_metrics(reference.folder)
    assert checkpoint_names(run.folder) == checkpoint_names(reference.folder) == ["step_00000006", "step_00000007"]
    ours, theirs = (checkpoint.folder_of(r.folder, STEPS) for r in (run, reference))
    assert checkpoint.verify(ours) is None
    tensors, expected = (dict(read_whole(folder, stored_tensors(folder))) for folder in (ours, theirs))
    assert tensors.keys() == expected.keys() and any(name.startswith("optimizer.exp_avg_sq.") for name in tensors)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert checkpoint.read_state(ours) == checkpoint.read_state(theirs)


@pytest.mark.parametrize("precision, kills", [("fp32", KILLS), ("bf16", KILLS[3:6])], ids=["fp32", "bf16"])
def test_killed_and_started_again(commands, tiny_data, tmp_path, precision, kills):
    run = Run(commands, tiny_data, tmp_path / "run", f"run.precision={precision}")
    for kill in kills:
        assert run.start(*kill).wait().code == -signal.SIGKILL, kill
    assert "resumed from" in run.finish().out
    assert_same(run, uninterrupted(commands, tiny_data, precision))


@pytest.mark.parametrize("precision, workers", [("fp32", (2, 2)), ("bf16", (0, 2))], ids=["fp32", "bf16"])
def test_killed_and_started_again_with_workers(commands, tiny_data, tmp_path, precision, workers):
    run = Run(commands, tiny_data, tmp_path / "run", f"run.precision={precision}")
    run.arguments.append(f"data.workers={workers[0]}")
    running = run.start("after_an_update", 3)
    assert running.wait().code == -signal.SIGKILL
    end = time.monotonic() + 60
    while running.processes():  # workers, and the process that forks them
        assert time.monotonic() < end, f"still there, without the run: {running.processes()}"
        time.sleep(0.05)
    run.arguments.append(f"data.workers={workers[1]}")
    assert "at step 2, row 4" in run.finish().out
    assert_same(run, uninterrupted(commands, tiny_data, precision))


@pytest.mark.parametrize(
    "number, workers, whole_job",
    [(signal.SIGTERM, 0, False), (signal.SIGTERM, 2, True), (signal.SIGINT, 2, True), (signal.SIGUSR1, 2, True)],
    ids=["SIGTERM", "SIGTERM to the job", "ctrl-c", "SIGUSR1 to the job"],
)
def test_a_signal_saves_after_the_step(commands, tiny_data, tmp_path, number, workers, whole_job):
    run = Run(commands, tiny_data, tmp_path / "run", f"data.workers={workers}")
    stopped = run.start("signal_in_a_step", 3, int(number), 1, whole_job).wait()
    assert (stopped.code, stopped.err) == (130, "")
    assert "3 of 7 steps done; the same command goes on from here" in stopped.out
    assert checkpoint_names(run.folder) == ["step_00000002", "step_00000003"]
    run.arguments.append("data.workers=0")
    assert "at step 3, row 6" in run.finish().out
    assert_same(run, uninterrupted(commands, tiny_data, "fp32"))


def test_a_signal_that_ends_the_workers_first_saves_what_there_is(commands, tiny_data, tmp_path):
    """It comes when the loop waits for the first of the 12 rows of step 2; two workers have at most 8 more under way."""
    overrides = ("data.global_batch_size=12", "run.steps=3")
    reference = Run(commands, tiny_data, tmp_path / "reference", *overrides)
    reference.finish()
    run = Run(commands, tiny_data, tmp_path / "run", *overrides, "data.workers=2")
    stopped = run.start("signal_while_rows_are_awaited", 13, int(signal.SIGTERM)).wait()
    assert stopped.code == 130, stopped.err
    assert "1 of 3 steps done" in stopped.out
    assert checkpoint_names(run.folder) == ["step_00000001"]
    run.arguments.append("data.workers=0")
    assert "at step 1, row 12" in run.finish().out
    assert read_metrics(run.folder) == read_metrics(reference.folder)


def test_workers_that_are_killed_are_begun_again_at_the_next_row(commands, tiny_data, tmp_path):
    """More rows than the workers have under way lie between the deaths; nothing that the run computes is changed."""
    overrides = ("data.global_batch_size=12", "run.steps=5", "checkpoint.every=9")
    reference = Run(commands, tiny_data, tmp_path / "reference", *overrides)
    reference.finish()
    run = Run(commands, tiny_data, tmp_path / "run", *overrides, "data.workers=2")
    done = run.start("kill_workers_after_updates", 1, 3).wait()
    assert (done.code, done.err) == (0, "")
    told = [line for line in done.out.splitlines() if "workers begin again" in line]
    assert len(told) == 2 and all(
        re.search(r"worker \d+ \(it held [\d,]+ MiB .* was killed at row \d+", line) for line in told
    )
    assert "(1 of 5 times)" in told[0] and "(2 of 5 times)" in told[1]
    assert read_metrics(run.folder) == read_metrics(reference.folder)


def test_workers_that_are_killed_too_often_end_the_run_saved_and_to_be_started_again(commands, tiny_data, tmp_path):
    overrides = ("data.global_batch_size=12", "run.steps=5", "checkpoint.every=9")
    reference = Run(commands, tiny_data, tmp_path / "reference", *overrides)
    reference.finish()
    run = Run(commands, tiny_data, tmp_path / "run", *overrides, "data.workers=1")
    done = run.start("kill_workers_for_good_after_update", 1).wait()
    assert done.code == 75, (done.out, done.err)
    (line,) = done.err.splitlines()
    assert line.startswith("error: loader worker ") and "lower data.workers" in line and "begun again 0 times" in line
    (saved,) = checkpoint_names(run.folder)  # rows that were under way are trained on first: at most 16
    assert saved in ("step_00000001", "step_00000002")
    run.arguments.append("data.workers=0")
    assert f"at step {int(saved[-8:])}, row {12 * int(saved[-8:])}" in run.finish().out
    assert read_metrics(run.folder) == read_metrics(reference.folder)


def test_a_second_signal_does_not_wait_for_the_step(commands, tiny_data, tmp_path):
    run = Run(commands, tiny_data, tmp_path / "run")
    stopped = run.start("signal_in_a_step", 3, int(signal.SIGTERM), 2, False).wait()
    assert stopped.code == 130 and stopped.err.startswith("interrupted") and stopped.err.count("\n") == 1
    assert checkpoint_names(run.folder) == ["step_00000002"]
    run.finish()
    assert_same(run, uninterrupted(commands, tiny_data, "fp32"))


def test_a_damaged_newest_checkpoint_costs_its_steps_only(commands, tiny_data, tmp_path):
    run = Run(commands, tiny_data, tmp_path / "run")
    assert run.start("after_an_update", 5).wait().code == -signal.SIGKILL
    assert checkpoint_names(run.folder) == ["step_00000002", "step_00000004"]
    (checkpoint.folder_of(run.folder, 4) / "__0_0.distcp").unlink()
    done = run.finish()
    warnings = [line for line in done.out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "step_00000004/__0_0.distcp is missing" in warnings[0]
    assert "at step 2, row 4" in done.out
    assert_same(run, uninterrupted(commands, tiny_data, "fp32"))


def test_a_finished_run_is_left_alone_and_can_be_made_longer(commands, tiny_data, tmp_path):
    run = Run(commands, tiny_data, tmp_path / "run", "optim.decay=constant")
    run.finish()
    before = read_metrics(run.folder)
    assert "is finished: 7 of 7 steps" in run.finish().out
    assert read_metrics(run.folder) == before
    run.arguments.append("run.steps=9")
    assert "resumed from" in run.finish().out
    longer = read_metrics(run.folder)
    assert longer[: len(before)] == before and [line["step"] for line in longer[len(before) :]] == [8, 9, 9]
