"""Available main memory of this process: of the machine, and of its cgroup."""

from __future__ import annotations

import contextlib
from pathlib import Path

MEMINFO, GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
DROPPED = ("inactive_file", "active_file", "slab_reclaimable")  # lines of memory.stat; shared memory is in none of them


def free_memory(meminfo: Path = MEMINFO, groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Available bytes, or None where the system does not say. For a cgroup v2 and its parents: limit minus usage.

    Its usage counts the page cache, weights of tens of GiB that were read among it; what the kernel drops of it is available.
    """
    found = []
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        name = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), "/")
    except (OSError, ValueError, IndexError):
        name = "/"
    folder = groups / name.strip("/")
    for group in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # no limit is "max"
            left = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
            found.append(left + _files_kept(group))
        if group == groups:
            break
    return max(0, min(found)) if found else None


def _files_kept(group: Path) -> int:
    """Bytes of page cache and of slabs that the kernel reclaims when a process of the group needs them."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.split()[:1] and line.split()[0] in DROPPED)
    except (OSError, ValueError, IndexError):
        return 0
