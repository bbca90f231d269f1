"""The benchmark of long runs, on a short one."""

from __future__ import annotations

import pytest


def test_it_measures_every_reader(commands):
    words = ("--lines", "300", "--checkpoints", "20", "--repeats", "1")
    done = commands.run("tools/benchmarks/long_run.py", *words)
    assert done.code == 0, done.err
    names = [line.split(" | ")[0].removeprefix("| ") for line in done.out.splitlines() if line.startswith("| ")]
    assert names[0] == "300 lines, CPU milliseconds" and names[-1] == "peak memory, MiB"
    assert names[1:-1] == ["watch_run, a look", "attempt, its last step", "checkpoints, listed", "metrics, resumed"]


def test_counts_that_give_no_figure_are_refused(commands):
    for words in (("--repeats", "0"), ("--lines", "0"), ("--checkpoints", "-1")):
        done = commands.run("tools/benchmarks/long_run.py", *words)
        assert done.code == 2 and f"argument {words[0]}: {words[1]}" in done.err, done.err


@pytest.mark.parametrize("name", ["encoding", "long_run", "reading_peers", "start_up"])
def test_what_is_no_checkout_is_refused(commands, name):
    done = commands.run(f"tools/benchmarks/{name}.py", "--base", "/nowhere")
    assert done.code == 2 and "--base /nowhere: no checkout of this project" in done.err, done.err
