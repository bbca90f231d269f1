"""Clean-up of shared memory that killed runs left on a node: found by name, removed when no process uses it."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
OURS = re.compile(
    r"deepspeed_allreduce_buffer_\d+_.*"  # DeepSpeed on CPUs
    r"|\d{6}_(locals|barrier|next_epoch|cache_usage|shard_states|shard_access_times)"  # mosaicml-streaming
    r"|torch_\d+_\d+_\d+"  # loader workers
    r"|nccl-.+"
)
YOUNG = 60  # seconds; a younger file may belong to a starting process


def remove_leftovers(folder: Path = SHARED_MEMORY, young: float = YOUNG) -> list[str]:
    """Remove this user's segments that no living process has open or mapped -> their names."""
    mine = [path for path in folder.iterdir() if OURS.fullmatch(path.name) and age_of_mine(path) > young]
    used = in_use(folder) if mine else set()
    removed = []
    for path in mine:
        # twice: names are reused, as each run of mosaicml-streaming takes the lowest free one
        if path.name not in used and age_of_mine(path) > young:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                removed.append(path.name)
    return sorted(removed)


def age_of_mine(path: Path) -> float:
    """Seconds since a file of this user was written; -1 for another user's, and for one just removed."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return -1
    return time.time() - found.st_mtime if found.st_uid == os.getuid() else -1


def in_use(folder: Path) -> set[str]:
    """Names of files in `folder` that a process of this user has open or mapped."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines = (process / "maps").read_text(encoding="utf-8", errors="replace").splitlines()
            files = list((process / "fd").iterdir())
        except OSError:  # it ended meanwhile, or is another user's
            continue
        paths = [line.split(maxsplit=5)[-1] for line in lines if str(folder) in line]
        for file in files:
            with contextlib.suppress(OSError):  # closed meanwhile, as the one that listed them is
                paths.append(os.readlink(file))
        found |= {Path(path).name for path in paths if Path(path).parent == folder}
    return found
