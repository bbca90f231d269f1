"""Available main memory of this process: of the machine, and of its cgroup."""

from __future__ import annotations

import contextlib
from pathlib import Path

MEMINFO, GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory(meminfo: Path = MEMINFO, groups: Path = GROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Available bytes, or None where the system does not say. For a cgroup v2 and its parents: limit minus usage."""
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
            found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
        if group == groups:
            break
    return max(0, min(found)) if found else None
