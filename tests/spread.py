"""How the tests are spread over the workers of pytest-xdist: what shares costly fixtures stays together, long groups first.

A module stays in one worker, with its fixtures. All modules that use the cluster are one group: there is one of it, and its jobs
mostly wait, beside which others compute. A world of processes (`tests.parallel_world`) is quickly made, so each worker has one
where it needs one: in one worker alone its tests would take longer than all the others together.

Groups are found in the text of the modules, because the process that hands out tests imports none of them. The marks of
pytest-xdist's own `--dist loadgroup` do nothing under pytest 9.2.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
SHARED = {"cluster": "slurm"}
"""A fixture of which a machine should have one at a time, and the group of the modules whose functions take it."""
MARKS = {"cluster": "slurm", "world": "processes", "browser": "browser", "commands": "commands"}
"""Fixtures, and the marks that their tests get, to choose them by: `pytest -m "not slurm"`."""
STARTS_PROCESSES = re.compile(r"\bsubprocess\.(run|Popen)\b|\bpython_fork\b")
"""In the text of a module: its tests are marked `commands` too."""
LONGEST = (
    "slurm",
    "tests/test_readme.py",
    "tests/pretrain/test_zero3.py",
    "tests/pretrain/test_parallel.py",
    "tests/pretrain/test_zero3_run.py",
    "tests/pretrain/test_parallel_run.py",
    "tests/tools/test_dry_run.py",
    "tests/pretrain/planning/test_memory.py",
    "tests/pretrain/test_overlap.py",
    "tests/pretrain/test_resume.py",
    "tests/test_start_up.py",
    "tests/pretrain/test_freezing.py",
    "tests/pretrain/test_trouble.py",
    "tests/pretrain/test_bad_steps.py",
    "tests/tools/test_serve_page.py",
    "tests/model/test_hf_as_usual.py",
)
"""Groups that take longest, in the order in which they start, so that none is left alone at the end."""
MOST_WORKERS = 8


def workers() -> int:
    """For `-n auto`: one more than there are cores, since one of them mostly waits for jobs."""
    return min(len(os.sched_getaffinity(0)) + 1, MOST_WORKERS)


class Scheduler(LoadScopeScheduling):
    """Hands a worker all tests of a group, and the next group when it is nearly done with them."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.split("::")[0])


def scheduler(config: pytest.Config, log) -> Scheduler:
    """The scheduler; it keeps the order of `put_in_order`."""
    config.option.loadscopereorder = False
    return Scheduler(config, log)


def import_in_turn(arguments: list[str], worker: int, workers: int) -> None:
    """Import the test modules, each worker from another place on, so that in a fresh clone each compiles its part of them.

    pytest compiles them with its own assertions, which takes longer than all other imports together. What cannot be imported
    is told of when it is collected.
    """
    found = [path for word in arguments for path in sorted((ROOT / word.split("::")[0]).rglob("test_*.py"))]
    first = len(found) * worker // max(1, workers)
    for path in found[first:] + found[:first]:
        with contextlib.suppress(Exception, SystemExit, pytest.skip.Exception):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


@cache
def group_of(module: str) -> str:
    """The group of a module by its path, as node ids begin; its own where it shares nothing."""
    text = (ROOT / module).read_text(encoding="utf-8")
    taken = (name for name in SHARED if re.search(rf"\bdef \w+\([^)]*\b{name}\b", text))
    return SHARED.get(next(taken, ""), module)


def mark(items: list[pytest.Item]) -> None:
    """Mark the tests by what they take: a cluster, many processes, a browser, commands that run in processes of their own."""
    for item in items:
        module = item.nodeid.split("::")[0]
        found = {MARKS[name] for name in MARKS if name in getattr(item, "fixturenames", ())}
        if starts_processes(module):
            found.add("commands")
        for name in found:
            item.add_marker(name)


@cache
def starts_processes(module: str) -> bool:
    """Whether the module's text starts processes."""
    return bool(STARTS_PROCESSES.search((ROOT / module).read_text(encoding="utf-8")))


def put_in_order(items: list[pytest.Item]) -> None:
    """The longest groups first. Raises UsageError for a test whose shared fixture is not seen in its module's text."""
    for item in items:
        for name, group in SHARED.items():
            if name in getattr(item, "fixturenames", ()) and group_of(item.nodeid.split("::")[0]) != group:
                raise pytest.UsageError(
                    f"{item.nodeid} uses {name}: name it among a function's arguments in its module"
                )
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(group_of(item.nodeid.split("::")[0]), len(places)))  # stable
