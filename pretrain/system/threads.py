"""Number of CPU threads of torch, and how idle OpenMP threads wait. Set before torch is loaded.

The number is that of the cores that this process may use, by its affinity and its control groups: it decides how sums are
split, and so how they are rounded, hence it must not follow the load of a moment. How threads wait does follow it. By
default a thread of OpenMP that has done its part spins for milliseconds until the others have done theirs. Where others want
the cores too, it spins away the time slice that the thread it waits for would need. There the threads sleep at once instead.
The OpenMP library reads that setting once, when torch loads it, and a load may begin later: so where nobody wants the cores
yet, threads spin for some tens of microseconds and then sleep, which costs nothing on idle cores and half as much on busy
ones. (docs/benchmarks/2026-11-29-start-up-and-threads.md has figures.)
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # if one is set, the user has decided
SPINS = 2_000  # spins of a waiting thread before it sleeps: GNU's OpenMP takes 300,000 by default
LOOKS, PAUSE = 7, 0.01  # samples of runnable threads; seconds between two


@dataclass(frozen=True)
class Threads:
    """Thread settings. `count` 0 keeps torch's number, because OMP_NUM_THREADS gives it."""

    count: int
    why: str

    def use(self) -> None:
        """Set torch's number of threads."""
        import torch

        if self.count:
            torch.set_num_threads(self.count)

    def __str__(self) -> str:
        return f"threads: {self.count or os.environ.get('OMP_NUM_THREADS')} ({self.why})"


def settle_threads(asked: int = 0) -> Threads:
    """Set the wait policy, if torch is not loaded yet, and choose the number of threads.

    asked: a number that the user gave; 0 takes the cores that this process may use, shared with the other processes of
    its run on this machine. `use` the result once torch may be imported.
    """
    if asked:
        count, why = asked, "as asked for"
    elif "OMP_NUM_THREADS" in os.environ:
        count, why = 0, "OMP_NUM_THREADS"
    else:
        cores, beside = usable_cores(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        count = max(1, cores // beside)
        why = f"{cores} cores may be used" + (f" by {beside} processes" if beside > 1 else "")
    if (count or int_of("OMP_NUM_THREADS", 1)) > 1 and not any(name in os.environ for name in POLICIES):
        others = others_running()
        if "torch" in sys.modules:
            pass  # torch has read its settings already
        elif others + (count or int_of("OMP_NUM_THREADS", 1)) > (os.cpu_count() or 1):
            os.environ["OMP_WAIT_POLICY"] = "passive"
            why += f", {others} other processes want some of them: threads sleep while they wait"
        else:
            os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    return Threads(count, why)


def usable_cores() -> int:
    """CPU cores that this process may use: of its affinity, and of the quota of each cgroup it is in."""
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas()])))


def quotas(membership: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> list[float]:
    """CPU quotas of cgroups v1 and v2, of this process's group and its parents, in cores; empty if unlimited."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        folder = top / path.strip("/")
        for group in [folder, *folder.parents]:
            if group == root.parent:
                break
            found.append(quota_of(group))
    return [quota for quota in found if quota]


def quota_of(group: Path) -> float:
    """CPU quota of one cgroup in cores; 0 without one."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        return 0.0 if quota == "max" else max(0.0, int(quota) / int(period))
    except (OSError, ValueError):
        return 0.0


def others_running(record: Path = Path("/proc/loadavg")) -> int:
    """Other runnable threads on the machine, the median of a few samples; 0 where that is not known."""
    looks = []
    for number in range(LOOKS):
        time.sleep(PAUSE if number else 0)
        try:
            looks.append(int(record.read_text(encoding="utf-8").split()[3].split("/")[0]) - 1)
        except (OSError, ValueError, IndexError):
            return 0
    return max(0, int(statistics.median(looks)))


def int_of(name: str, default: int) -> int:
    """Integer of an environment variable."""
    value = os.environ.get(name, "").split(",")[0]
    return int(value) if value.isdigit() else default
