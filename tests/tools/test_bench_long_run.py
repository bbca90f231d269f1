"""The benchmark of long runs, on a short one."""

from __future__ import annotations


def test_it_measures_every_reader(commands):
    words = ("--lines", "300", "--checkpoints", "20", "--repeats", "1")
    done = commands.run("tools/benchmarks/long_run.py", *words)
    assert done.code == 0, done.err
    names = [line.split(" | ")[0].removeprefix("| ") for line in done.out.splitlines() if line.startswith("| ")]
    assert names[0] == "300 lines, CPU milliseconds" and names[-1] == "peak memory, MiB"
    assert names[1:-1] == ["watch_run, a look", "attempt, its last step", "checkpoints, listed", "metrics, resumed"]


def test_what_is_no_checkout_and_no_number_is_refused(commands):
    for words in (("--base", "/nowhere"), ("--repeats", "0"), ("--lines", "0"), ("--checkpoints", "-1")):
        done = commands.run("tools/benchmarks/long_run.py", *words)
        assert done.code == 2 and f"argument {words[0]}: {words[1]}" in done.err, done.err
