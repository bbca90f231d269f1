"""A disk that is soon full: a tmpfs where this process may mount one, else a limit on the size of files."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[tuple[Path, tuple]]:
    """-> the folder, and the hook (module, function, arguments) for `commands.run`."""
    folder.mkdir(parents=True)
    mounted = (
        os.getuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
        ).returncode
    )
    try:
        yield folder, (() if mounted else (__name__, "limit_files", size // 64))
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def limit_files(size: int) -> None:
    """No file of this process grows beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
