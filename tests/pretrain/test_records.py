"""What a run records: on disk while there is room, kept and told once while there is none, lost never without a word."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import records
from pretrain.records import Records
from tests.commands import ROOT
from tests.pretrain import checkpoint_jobs
from tests.pretrain.test_parallel_run import write_config
from tests.pretrain.tiny_run import SPEEDS, checkpoint_names, read_metrics
from tests.small_disk import small_disk


class Full:
    """No file of this process grows beyond so many bytes."""

    def __init__(self, limit: int):
        self.limit = limit

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


WRITES = st.lists(
    st.tuples(st.sampled_from("abW"), st.integers(0, 300), st.sampled_from([0, 7, 150, None])), max_size=12
)


@settings(max_examples=40, deadline=None)
@given(writes=WRITES)
def test_everything_is_there_in_order_however_the_room_comes_and_goes(writes, tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("records"), []
    wanted: dict[str, bytes] = {}
    with Records(lambda level, line: said.append(line)) as kept:
        for number, (name, size, limit) in enumerate(writes):
            data = f"{number}:".encode() + b"x" * size + b"\n"
            wanted[name] = data if name == "W" else wanted.get(name, b"") + data
            with Full(1 << 20 if limit is None else limit):
                (kept.put if name == "W" else kept.append)(folder / "logs" / name, data)
            for path in folder.glob("logs/*"):  # whole lines only, at any moment, and nothing that is half made
                assert path.name in wanted and path.read_bytes()[-1:] in (b"", b"\n")
    assert {path.name: path.read_bytes() for path in folder.glob("logs/*")} == wanted
    assert sum("is kept in memory" in line for line in said) - sum("room again" in line for line in said) in (0, 1)


def test_a_file_that_is_replaced_goes_on_as_the_new_one_with_what_waited(tmp_path):
    path, said = tmp_path / "a", []
    with Records(lambda level, line: said.append(line)) as kept:
        kept.append(path, b"1\n")
        with Full(3):
            kept.append(path, b"2\n")
            assert kept.release(path) == b"2\n" and kept.release(path) == b""
        assert path.read_bytes() == b"1\n"
        kept.append(path, b"2\n")
        kept.put(path, b"0\n")
        kept.append(path, b"3\n")
    assert path.read_bytes() == b"0\n3\n"


LOG = """
import resource
from pretrain.system.disk import discard_unwritten_output
from pretrain.coordination import Coordinator
most, coordinator = resource.getrlimit(resource.RLIMIT_FSIZE), Coordinator()
resource.setrlimit(resource.RLIMIT_FSIZE, (0, most[1]))
coordinator.say("first")
coordinator.say("second")
if {room}:
    resource.setrlimit(resource.RLIMIT_FSIZE, most)
    coordinator.say("third")
discard_unwritten_output()
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "room, found", [(True, "third\nwarning: this log had no room for 2 lines before the last one\n"), (False, "")]
)
def test_a_log_on_a_full_disk_ends_nothing(tmp_path, room, found, unbuffered):
    """What is counted as lost is lost: Python kept such lines for later, but where PYTHONUNBUFFERED is set. The exit code
    is the program's own."""
    with open(tmp_path / "log", "w") as log:
        done = subprocess.run(
            [sys.executable, "-c", LOG.format(room=room)],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=log,
            stderr=subprocess.PIPE,
        )
    assert (done.returncode, done.stderr, (tmp_path / "log").read_text()) == (0, b"", found)


def test_what_is_lost_at_the_end_is_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(records, "MOST_BYTES", 10)
    said = []
    with Full(0), Records(lambda level, line: said.append(line)) as kept:
        for _ in range(4):
            kept.append(tmp_path / "a", b"123\n")
    assert said == [
        f"{tmp_path / 'a'}: File too large: what this run records is kept in memory until there is room, "
        "and training goes on"
    ]
    assert capsys.readouterr().err == f"error: records that could not be written are lost: 4 of {tmp_path / 'a'}\n"
    assert (tmp_path / "a").read_bytes() == b""


def test_an_older_attempt_writes_nothing_any_more(tmp_path, capsys):
    with Records(pytest.fail, lambda: False) as kept:
        kept.append(tmp_path / "a", b"1\n")
    assert not (tmp_path / "a").exists() and capsys.readouterr().err == ""


def test_a_disk_that_is_full_for_some_steps_costs_a_run_nothing_but_their_checkpoints(world, tiny_data, tmp_path):
    """Metrics, TensorBoard's events and the logs of the ranks are those of a run with room."""
    found = {}
    for name, full, room in (("whole", 8, 8), ("full", 2, 7)):
        changes = {"run": {"steps": 8}, "checkpoint": {"every": 2, "keep": 9}, "log": {"tensorboard": True}}
        config = write_config(tiny_data, tmp_path / name, {}, **changes)
        found[name] = world.run(
            checkpoint_jobs.train_run_on_a_full_disk, 2, config=config, overrides=[], full=full, room=room
        )
    assert [code for code, _, _ in found["full"]] == [0, 0] and not found["full"][1][1]
    run, whole = tmp_path / "full", tmp_path / "whole"
    warnings = [line for line in found["full"][0][1].splitlines() if "warning" in line]
    assert [line.split(" could not")[0] for line in warnings if "checkpoint" in line] == [
        f"warning: the checkpoint of step {step}" for step in (4, 6)
    ]
    assert all("File too large" in line for line in warnings) and len(warnings) == 3, warnings
    assert "room again" in found["full"][0][1]
    assert read_metrics(run) == read_metrics(whole)
    assert events(run) == events(whole) and events(run)
    for path in ("logs/attempt_0000/rank_0000.jsonl", "logs/attempt_0000/rank_0001.jsonl"):
        assert (run / path).read_text().count('"step"') == 8
    assert checkpoint_names(run) == ["step_00000002", "step_00000008"]


def events(run: Path) -> list:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return [
        (name, event.step, event.value)
        for name in found.Tags()["scalars"]
        for event in found.Scalars(name)
        if name not in SPEEDS
    ]


def test_a_start_without_room_is_one_line(tiny_data, tmp_path, commands):
    """On a disk of its own where there may be one, else by a limit on the size of files."""
    with small_disk(tmp_path / "disk", 64 << 10) as (folder, hook):
        config = write_config(tiny_data, tmp_path / "run", {})
        (folder / "ballast").write_bytes(b"x" * (60 << 10))
        overrides = (f"run.folder={folder / 'run'}", "log.heldout_rows=1")
        done = commands.run("pretrain/train.py", "--config", config, *overrides, hook=hook)
    assert (done.code, len(done.err.splitlines())) == (1, 1), done.err
    assert done.err.startswith(f"error: {folder}") and "make room there" in done.err, done.err
