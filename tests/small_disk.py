"""A disk that is soon full: a tmpfs where this process may mount one, else a limit on the size of files."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


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


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder in which nothing can be written: a read-only mount for root, who may write anywhere, else a mode."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder]
    if mounted := os.getuid() == 0:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("root may write anywhere, and mount nothing here")
    else:
        folder.chmod(0o500)
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
        else:
            folder.chmod(0o700)


def limit_files(size: int) -> None:
    """No file of this process grows beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
