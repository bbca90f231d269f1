"""What `tools/watch_run.py` tells of a run folder."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from slurm import attempt
from tests.commands import assert_refused
from tools.runs.state import RankTimes, read_run, slow_ranks


def write_lines(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path) -> Path:
    """Step 30 of 100 on 4 ranks: 8 rows of 128 tokens a step, 512 tokens/s, so 2 s a step."""
    folder = tmp_path / "run"
    config = {"run": {"steps": 100}, "data": {"global_batch_size": 8, "sequence_length": 128}}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {
            "step": step,
            "train/loss": 4.0 - step / 100,
            "train/loss_text": 3.0,
            "train/loss_image": 5.0,
            "train/tokens_text": 300,
            "train/tokens_image": 500,
            "train/grad_norm": 1.5,
            "tok_per_sec_per_gpu": 128.0,
            "data_wait_pct": 7.0,
        }
        for step in range(1, 31)
    ]
    write_lines(folder / "metrics.jsonl", [*lines, {"step": 30, "heldout/loss": 3.9}])
    (folder / "metrics.jsonl").open("a").write('{"step": 31, "tra')
    write_lines(folder / "starts.jsonl", [{"processes": 2}, {"processes": 4}])
    attempt.begin(folder, ["node1", "node2"], 4)
    attempt.end(folder, 137, "", "", 3)
    for rank in range(4):
        times = {"seconds": 2.0, "waited_rows": 0.1, "alone": 1.8 if rank == 2 else 0.9}
        write_lines(folder / f"logs/attempt_0001/rank_{rank:04d}.jsonl", [{"step": step, **times} for step in (29, 30)])
    return folder


def test_what_is_read(run):
    state = read_run(run)
    assert (state.step, state.steps, state.ranks, state.finished) == (30, 100, 4, False)
    assert state.tokens_per_second == 512 and state.seconds_left == pytest.approx(140)
    assert [(times.rank, what) for times, what in slow_ranks(state.times)] == [(2, "computing")]


def test_slow_ranks():
    def times(alone: float, rows: float = 0.1, step: int = 9) -> RankTimes:
        return RankTimes(0, step, 3.0, rows, alone)

    even = [times(1.0), times(1.05), times(0.95)]
    assert slow_ranks(even) == [] and slow_ranks(even[:1]) == []
    assert [what for _, what in slow_ranks([*even, times(1.0, rows=1.1)])] == ["reading rows"]
    assert [what for _, what in slow_ranks([*even, times(2.0), times(1.0, step=3)])] == [
        "computing",
        "behind the others, or gone",
    ]
    assert slow_ranks([times(0.0), times(0.0), times(0.0)]) == []  # an engine that does not know


def test_what_a_rank_does_alone_is_told_from_waiting_for_it(world, tiny_data, tmp_path):
    """Two data-parallel ranks, of which one needs a second more for each row; both then take as long for a step."""
    from tests.pretrain import checkpoint_jobs
    from tests.pretrain.tiny_run import write_config

    config = write_config(tiny_data, tmp_path / "run")
    found = world.run(
        checkpoint_jobs.train_run_with_a_slow_rank, 2, config=config, overrides=["run.steps=3"], rank=1, delay=1.0
    )
    assert [code for code, _, _ in found] == [0, 0]
    first, second = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("run/logs/*/*.jsonl"))
    )
    assert len(second) == 3 and all(line["alone"] >= 1.0 and line["seconds"] >= 1.0 for line in [*second])
    assert min(line["alone"] for line in first) < min(line["alone"] for line in second)
    assert all(line["seconds"] >= 1.0 for line in first)


def test_the_page(commands, run):
    done = commands.run("tools/watch_run.py", run, "--once")
    assert done.code == 0, done.err
    for words in (
        "30 of 100 (30.0%)",
        "30,720 of 102,400",
        "about 0:02:20 to go",
        "512 tokens/s on 4 ranks",
        "7 % of it",
        "3.7000",
        "held-out 3.9000",
        "a rank was ended by SIGKILL",
        "slow ranks",
    ):
        assert words in done.out, done.out


def test_a_run_that_was_told_to_stop_is_said_to_be_interrupted_until_it_goes_on(commands, run):
    started = {"processes": 4, "time": "2026-11-29T10:00:00Z"}
    write_lines(run / "starts.jsonl", [started])
    ended = {
        "time": "2026-11-29T10:05:00Z",
        "attempt": 0,
        "event": "interrupted and saved",
        "step": 30,
        "signal": "SIGINT",
    }
    write_lines(run / "events.jsonl", [ended])
    done = commands.run("tools/watch_run.py", run, "--once")
    assert "interrupted (SIGINT) and saved after step 30" in done.out and "to go" not in done.out, done.out
    write_lines(run / "starts.jsonl", [started, started | {"time": "2026-11-29T10:06:00Z"}])
    assert read_run(run).interrupted is None
    write_lines(run / "events.jsonl", [ended, ended | {"event": "bad step"}])
    assert read_run(run).interrupted is None


def test_a_finished_run_with_a_model(commands, tiny_data, tmp_path):
    from tests.pretrain.tiny_run import write_config

    folder = tmp_path / "run"
    assert commands.run("pretrain/train.py", "--config", write_config(tiny_data, folder)).code == 0
    for wrong in (["--every", "nan"], ["--every", "-1"], ["--peak-tflops", "inf"]):
        assert_refused(commands.run("tools/watch_run.py", folder, *wrong), *wrong)
    (folder / "starts.jsonl").write_bytes(b"\xff\n" + (folder / "starts.jsonl").read_bytes())  # a damaged disk
    done = commands.run("tools/watch_run.py", folder, "--peak-tflops", "0.001")
    assert done.code == 0 and "finished" in done.out and "MFU" in done.out
    state = read_run(folder)
    assert state.flops_per_second > 0 and state.age < time.time()
    for model in folder.glob("checkpoints/*/model.json"):
        model.write_text(json.dumps({**json.loads(model.read_text()), "of_a_newer_release": 1}))
    done = commands.run("tools/watch_run.py", folder, "--peak-tflops", "0.001")
    assert done.code == 0 and "finished" in done.out and "MFU" not in done.out


def test_what_is_no_run_folder_is_refused(commands, tmp_path):
    assert_refused(commands.run("tools/watch_run.py", tmp_path), str(tmp_path), "config.yaml")


@pytest.mark.parametrize(
    "name, line",
    [
        ("metrics.jsonl", '{"step": "31", "train/loss": 3.0}'),
        ("metrics.jsonl", '{"step": 31, "train/loss": "x", "tok_per_sec_per_gpu": 5.0}'),
        ("metrics.jsonl", '{"step": 31, "train/loss": 3.0, "tok_per_sec_per_gpu": "5.0"}'),
        ("metrics.jsonl", "\0\0\0"),
        ("starts.jsonl", '{"processes": "x"}'),
        ("starts.jsonl", "[]"),
        ("restarts.jsonl", '{"attempt": 3}'),
        ("restarts.jsonl", '{"attempt": 3, "to_step": "x"}'),
        ("events.jsonl", '{"event": "interrupted", "time": 5}'),
        ("logs/attempt_0001/rank_0000.jsonl", '{"seconds": "x", "step": 1}'),
        ("logs/attempt_0001/rank_0000.jsonl", '{"seconds": 1.0}'),
    ],
)
def test_a_damaged_line_is_passed_over_and_counted(commands, run, name, line):
    there = read_run(run)
    path = run / name
    if name == "metrics.jsonl":  # the end of the last line was being written
        path.write_text(path.read_text().rpartition("\n")[0] + "\n")
    with path.open("a") as file:
        file.write(line + "\n")
    state = read_run(run)
    assert state.damaged == {name: 1} and there.damaged == {}
    assert (state.step, state.ranks, state.train, state.attempts, state.times) == (
        there.step,
        there.ranks,
        there.train,
        there.attempts,
        there.times,
    )
    done = commands.run("tools/watch_run.py", run, "--once")
    assert done.code == 0 and f"1 line of {name} cannot be read" in done.out


def test_lines_with_fewer_numbers_are_shown(commands, run):
    with (run / "metrics.jsonl").open("w") as file:
        file.write('{"step": 31, "train/loss": 3.0}\n')
    (run / "logs/attempt_0001/rank_x.jsonl").write_text('{"seconds": 1.0, "step": 3}\n')
    done = commands.run("tools/watch_run.py", run, "--once")
    assert done.code == 0 and "31 of 100" in done.out and "3.0000" in done.out


@pytest.mark.parametrize(
    "content, message",
    [
        (b"- a\n", "is no run's configuration"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"run: {steps: many}\ndata: {global_batch_size: 8, sequence_length: 128}\n", "run.steps is 'many'"),
        (b"run: {steps: 0}\ndata: {global_batch_size: 8, sequence_length: 128}\n", "run.steps is 0"),
        (b"run: {steps: 5}\ndata: {global_batch_size: 0, sequence_length: 128}\n", "data.global_batch_size is 0"),
        (b"run: {steps: 5}\ndata: {global_batch_size: 8}\n", "data.sequence_length is None"),
    ],
)
def test_a_damaged_configuration_is_named(commands, run, content, message):
    (run / "config.yaml").write_bytes(content)
    assert_refused(commands.run("tools/watch_run.py", run), f"{run}/config.yaml", message)
