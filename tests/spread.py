"""How the tests are spread over the workers of pytest-xdist: what shares costly fixtures stays together, long groups first.

A module stays in one worker, with its fixtures. All modules that use the cluster are one group, as are those that use the
world of processes: there is one of each, and the jobs of a cluster mostly wait, beside which others compute.
"""

from __future__ import annotations

import os

import pytest

SHARED = {"cluster": "slurm", "world": "processes"}
"""Fixtures of which a machine should have one at a time, and the group of the modules that use them."""
LONGEST = (
    "slurm",
    "processes",
    "tests/test_readme.py",
)
"""Groups that take longest, in the order in which they start, so that none is left alone at the end."""
MOST_WORKERS = 8


def workers() -> int:
    """For `-n auto`: one more than there are cores, since one of them mostly waits for jobs."""
    return min(len(os.sched_getaffinity(0)) + 1, MOST_WORKERS)


def spread(items: list[pytest.Item]) -> None:
    """Mark every test with its group, and bring them into the order of groups. The same in every worker."""
    group_of: dict[str, str] = {}
    for item in items:
        module = module_of(item)
        shared = next((SHARED[name] for name in SHARED if name in getattr(item, "fixturenames", ())), module)
        if shared != module or module not in group_of:
            group_of[module] = shared
    places = {name: place for place, name in enumerate(LONGEST)}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of[module_of(item)]))
    items.sort(key=lambda item: places.get(group_of[module_of(item)], len(places)))  # stable


def module_of(item: pytest.Item) -> str:
    """The file of a test, as node ids begin."""
    return item.nodeid.split("::")[0]
