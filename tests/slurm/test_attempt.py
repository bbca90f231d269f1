"""Attempts at a run: their numbers, what is written about their ends, and what follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slurm import attempt


def saved(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)


def told(run: Path, step: int) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": at}) + "\n" for at in range(1, step + 1)) + '{"ste')


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


def ended(run: Path, code: int, limit: int = 3, signal: str = "", reason: str = "") -> str:
    logs = attempt.logs_of(run, attempt.begin(run, ["node1", "node2"], 4))
    if code == 0:
        logs.mkdir(parents=True)
        (logs / "rank_0000.log").write_text("/run: 9 of 9 steps done\n")
    return attempt.end(run, code, reason, signal, limit)[0]


def test_numbers_grow_whatever_happens_between(run):
    assert attempt.begin(run, ["node1"], 2) == 1
    assert attempt.end(run, 1, "", "", 9)[0] == "restart"
    assert attempt.begin(run, ["node1"], 2) == 2  # and its batch script is lost
    assert attempt.begin(run, ["node1"], 2) == 3
    silent = attempt.ended(run)[-1]
    assert (silent["attempt"], silent["code"]) == (2, None) and "without a word" in silent["reason"]
    (run / "attempt.json").write_text('{"attempt": 3, "jo')  # the machine went down while it was written
    assert attempt.begin(run, ["node1"], 2) > 2


@pytest.mark.parametrize(
    "code, signal, decision",
    [
        (0, "", "done"),
        (0, "warned", "done"),
        (2, "", "refused"),
        (2, "warned", "refused"),
        (130, "", "requeue"),
        (130, "warned", "requeue"),
        (137, "warned", "requeue"),
        (1, "", "restart"),
        (75, "", "restart"),
        (137, "", "restart"),
        (130, "cancelled", "stop"),
        (137, "cancelled", "stop"),
    ],
)
def test_what_follows_an_exit_code(run, code, signal, decision):
    assert ended(run, code, signal=signal) == decision
    assert attempt.ended(run)[0]["decision"] == decision


def test_it_gives_up_when_nothing_is_gained(run):
    assert [ended(run, 1) for _ in range(3)] == ["restart", "restart", "stop"]
    assert "the 3 attempts up to this one made no checkpoint" in attempt.ended(run)[-1]["reason"]
    assert ended(run, 1) == "restart"  # somebody submitted it again: counting begins anew


def test_a_checkpoint_is_progress(run):
    for number in range(5):
        attempt.begin(run, ["node1"], 2)
        saved(run, 10 * (number + 1))
        told(run, 10 * (number + 1) + 3)
        assert attempt.end(run, 137, "", "", 2)[0] == "restart"
    entry = attempt.ended(run)[-1]
    assert (entry["from_step"], entry["saved_step"], entry["to_step"]) == (40, 50, 53)
    assert ended(run, 1, limit=2) == "restart"
    assert ended(run, 1, limit=2) == "stop"


def test_the_first_cause_is_found_among_its_consequences(run):
    attempt.begin(run, ["node1", "node2"], 4)
    logs = attempt.logs_of(run, 1)
    logs.mkdir(parents=True)
    (logs / "rank_0000.log").write_text("step 1\nRuntimeError: [gloo] Connection closed by peer [198.18.0.2]:1234\n")
    (logs / "rank_0003.log").write_text("Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n")
    (logs / "srun.log").write_text("srun: error: node2: task 3: Exited with exit code 1\n")
    _, line = attempt.end(run, 1, "", "", 3)
    assert "rank 3 on node2: Exited with exit code 1" in line and "rank_0003: torch.OutOfMemoryError" in line
    assert "closed by peer" not in line


@pytest.mark.parametrize(
    "first, code, decision",
    [
        ("Exited with exit code 75", 75, "restart"),
        ("Exited with exit code 2", 2, "refused"),
        ("Killed", 137, "restart"),
    ],
)
def test_the_rank_that_left_first_has_the_say(run, first, code, decision):
    """The others waited for it until srun killed them, and srun's own code is then the largest: 137."""
    attempt.begin(run, ["node1", "node2"], 4)
    logs = attempt.logs_of(run, 1)
    logs.mkdir(parents=True)
    (logs / "srun.log").write_text(f"srun: error: node2: tasks 2-3: {first}\nsrun: error: node1: tasks 0-1: Killed\n")
    assert attempt.end(run, 137, "", "", 3)[0] == decision
    assert attempt.ended(run)[0]["code"] == code


@pytest.mark.parametrize("signal, decision", [("cancelled", "stop"), ("warned", "requeue"), ("", "requeue")])
def test_a_run_that_left_early_is_not_done(run, signal, decision):
    """srun ended with 0: "Failed to send MESSAGE_TASK_EXIT" (Slurm 22.05.8, a step that was cancelled)."""
    attempt.begin(run, ["node1", "node2"], 4)
    logs = attempt.logs_of(run, 1)
    logs.mkdir(parents=True)
    (logs / "rank_0000.log").write_text("/run: 4 of 9 steps done; the same command goes on from here\n")
    assert attempt.end(run, 0, "", signal, 3)[0] == decision
    (logs / "rank_0000.log").write_text("/run: 9 of 9 steps done\n")
    assert attempt.end(run, 0, "", signal, 3)[0] == "done"


def test_a_lost_node_is_named(run):
    attempt.begin(run, ["node1", "node2"], 4)
    logs = attempt.logs_of(run, 1)
    logs.mkdir(parents=True)
    (logs / "srun.log").write_text("srun: error: Node failure on node2\nsrun: error: node1: tasks 0-1: Killed\n")
    assert "node node2 was lost" in attempt.end(run, 137, "", "", 3)[1]


def test_the_command_speaks_to_a_script(commands, run):
    done = commands.run("slurm/attempt.py", "begin", run, "--nodes", "node1,node2", "--ranks", 4)
    assert (done.code, done.out) == (0, "1\n")
    done = commands.run("slurm/attempt.py", "end", run, "--code", 130, "--signal", "warned")
    assert (done.code, done.out) == (0, "requeue\n") and "time limit or pre-emption" in done.err


def test_a_folder_that_cannot_be_written_is_refused(commands, tmp_path):
    (tmp_path / "file").write_text("")
    done = commands.run("slurm/attempt.py", "begin", tmp_path / "file" / "run")
    assert done.code == 2 and done.err.count("\n") == 1 and "cannot be written" in done.err


def test_steps_done_again_are_counted_from_where_the_next_attempt_went_on(run):
    attempt.begin(run, ["node1"], 2)
    saved(run, 20)
    told(run, 22)
    attempt.end(run, 137, "", "", 3)
    assert attempt.recomputed(attempt.ended(run)) == [2]  # as far as is known
    attempt.begin(run, ["node1"], 2)
    logs = attempt.logs_of(run, 2)
    logs.mkdir(parents=True)
    (logs / "rank_0000.log").write_text(
        "warning: step_00000020 is damaged\nresumed from x/step_00000015 at step 15, row 60\n"
    )
    told(run, 40)
    attempt.end(run, 0, "", "", 3)
    assert attempt.recomputed(attempt.ended(run)) == [7, 20]


def test_an_end_that_cannot_be_written_is_told_and_the_job_goes_on(commands, run):
    """A full disk is no reason to stop a job: what follows is decided as ever, and the next attempt notes this one's end."""
    assert ended(run, 75, reason="long" * 2000) == "restart"
    attempt.begin(run, ["node1"], 2)
    hook = ("tests.small_disk", "limit_files", 4096)  # less than restarts.jsonl has already
    done = commands.run("slurm/attempt.py", "end", run, "--code", 75, hook=hook)
    assert (done.code, done.out) == (0, "restart\n") and done.err.count("\n") == 1
    assert "restarts.jsonl cannot be written" in done.err and "make room there" in done.err
    assert attempt.begin(run, ["node1"], 2) == 3
    assert [entry["attempt"] for entry in attempt.ended(run)] == [1, 2]
    assert attempt.ended(run)[1]["reason"].startswith("ended without a word")


def test_an_attempt_that_cannot_be_noted_does_not_begin(commands, run):
    attempt.begin(run, ["node1"], 2)
    nodes = ",".join(f"node{number}" for number in range(1000))
    done = commands.run(
        "slurm/attempt.py", "begin", run, "--nodes", nodes, hook=("tests.small_disk", "limit_files", 4096)
    )
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1 and "make room there" in done.err


def test_a_code_of_zero_without_a_done_run_is_no_end(run):
    """srun can end with 0 although its ranks were not started: "launch failed: Slurmd could not connect IO"."""
    attempt.begin(run, ["node1"], 1)
    logs = attempt.logs_of(run, 1)
    logs.mkdir(parents=True)
    (logs / "rank_0000.log").write_text("")
    (logs / "srun.log").write_text("srun: error: task 0 launch failed: Slurmd could not connect IO\n")
    decision, line = attempt.end(run, 0, "", "", 3)
    assert decision == "restart" and "Slurmd could not connect IO" in line
    assert attempt.ended(run)[-1]["code"] == 1


def test_a_finished_run_that_is_submitted_again_is_done(run):
    logs = attempt.logs_of(run, attempt.begin(run, ["node1"], 1))
    logs.mkdir(parents=True)
    (logs / "rank_0000.log").write_text("/run is finished: 9 of 9 steps are done\n")
    assert attempt.end(run, 0, "", "", 3)[0] == "done"


def test_only_the_job_of_an_attempt_notes_its_end(run, monkeypatch):
    """Two jobs in one folder: the first noted the end of the second, which still trained."""
    monkeypatch.setenv("SLURM_JOB_ID", "38")
    assert attempt.begin(run, ["node1"], 1) == 1
    monkeypatch.setenv("SLURM_JOB_ID", "39")
    assert attempt.begin(run, ["node2"], 1) == 2
    monkeypatch.setenv("SLURM_JOB_ID", "38")
    decision, line = attempt.end(run, 1, "", "", 3, number=1)
    assert decision == "stop" and "job 39" in line and "attempt 2" in line and "run.folder" in line
    assert [entry["attempt"] for entry in attempt.ended(run)] == [1]
    monkeypatch.setenv("SLURM_JOB_ID", "39")
    assert attempt.end(run, 1, "", "", 3, number=2)[0] == "restart"
