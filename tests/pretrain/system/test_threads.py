"""Threads: as many as cores may be used, asleep while they wait where others want the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.system import threads
from pretrain.system.threads import others_running, quotas, settle_threads, usable_cores

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def fresh(monkeypatch) -> pytest.MonkeyPatch:
    """As in a process that has not loaded torch, whose user has set nothing, on 4 cores that nobody else wants."""
    for name in (*threads.POLICIES, "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone, too
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(threads, "others_running", lambda: 0)
    return monkeypatch


def test_alone_threads_spin_for_a_short_while(fresh):
    """A load may begin when the OpenMP library has read its settings."""
    settled = settle_threads()
    assert (
        settled.count == 4
        and "OMP_WAIT_POLICY" not in os.environ
        and str(settled) == "threads: 4 (4 cores may be used)"
    )
    assert os.environ["GOMP_SPINCOUNT"] == str(threads.SPINS)


def test_one_thread_waits_for_none(fresh):
    assert settle_threads(1).count == 1 and not any(name in os.environ for name in threads.POLICIES)


@pytest.mark.parametrize(
    "others, asked, passive", [(1, 0, True), (2, 2, False), (3, 2, True), (30, 4, True), (30, 1, False)]
)
def test_threads_sleep_where_cores_are_wanted_by_others(fresh, others: int, asked: int, passive: bool):
    fresh.setattr(threads, "others_running", lambda: others)
    settled = settle_threads(asked)
    assert settled.count == (asked or 4)
    assert (os.environ.get("OMP_WAIT_POLICY") == "passive") is passive is ("sleep" in settled.why)


def test_what_the_user_set_stays(fresh):
    fresh.setattr(threads, "others_running", lambda: 30)
    fresh.setenv("GOMP_SPINCOUNT", "7")
    assert settle_threads().count == 4 and "OMP_WAIT_POLICY" not in os.environ
    fresh.delenv("GOMP_SPINCOUNT")
    fresh.setenv("OMP_NUM_THREADS", "3,1")
    settled = settle_threads()
    assert settled.count == 0 and os.environ["OMP_WAIT_POLICY"] == "passive" and "OMP_NUM_THREADS" in settled.why


def test_processes_of_a_run_share_the_cores(fresh):
    for processes, expected in ((2, 2), (3, 1), (9, 1)):
        fresh.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert settle_threads().count == expected


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_the_quota_of_every_group_around_counts(tmp_path: Path):
    membership = tmp_path / "membership"
    membership.write_text("0::/pod/container\n")
    assert quotas(membership, tmp_path) == []
    write(tmp_path / "pod/container", cpu__max="max 100000\n")
    write(tmp_path / "pod", cpu__max="250000 100000\n")
    assert quotas(membership, tmp_path) == [2.5]
    membership.write_text("12:memory:/a\n4:cpu,cpuacct:/a\n0::/\n")
    write(tmp_path / "cpu,cpuacct/a", cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="100000\n")
    write(tmp_path / "cpu,cpuacct", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert quotas(membership, tmp_path) == [1.5]
    assert quotas(tmp_path / "none", tmp_path) == []


def test_cores_of_this_process(monkeypatch):
    monkeypatch.setattr(threads, "quotas", lambda: [2.5, 0.5])
    assert usable_cores() == 1
    monkeypatch.setattr(threads, "quotas", lambda: [])
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_who_wants_the_cores(tmp_path: Path):
    (tmp_path / "loadavg").write_text("3.00 2.00 1.00 6/345 999\n")
    assert others_running(tmp_path / "loadavg") == 5
    assert others_running(tmp_path / "none") == 0
    assert others_running() >= 0


@pytest.mark.parametrize("others, heard", [(99, "OMP_WAIT_POLICY = 'PASSIVE'"), (0, "GOMP_SPINCOUNT = '2000'")])
def test_the_library_of_torch_hears_it(others: int, heard: str):
    """In a fresh process: what is set before torch is loaded is what its OpenMP says of itself."""
    code = (
        f"from pretrain.system import threads; threads.others_running = lambda: {others}; import os; os.cpu_count = lambda: 2;"
        "settled = threads.settle_threads(2); import torch; settled.use(); assert torch.get_num_threads() == 2"
    )
    environment = {name: value for name, value in os.environ.items() if name not in threads.POLICIES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and heard in done.stderr, done.stderr
