"""Corpus files on a local disk or in any storage that fsspec supports: s3://, gs://, hf://, https://, memory:// and
more.

A worker downloads one corpus file at a time, as object stores prefer; images named in JSON lines are downloaded one by one,
by the threads that decode.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pretrain.system.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A file or folder in a folder; `size` in bytes, 0 for folders."""

    name: str
    path: str
    size: int
    is_folder: bool


def is_remote(path: str) -> bool:
    """Whether a path is a URL, for fsspec."""
    return "://" in path


def entry_of(path: str) -> Entry | None:
    """Entry of `path`, or None if there is nothing. Raises UserError if its file system cannot be used."""
    if not is_remote(path):
        local = Path(path)
        if not local.exists():
            return None
        is_folder = local.is_dir()
        return Entry(local.resolve().name, path, 0 if is_folder else local.stat().st_size, is_folder)
    filesystem, inner = filesystem_of(path)
    with remote_errors(path):
        if not filesystem.exists(inner):
            return None
        info = filesystem.info(inner)
    return Entry(inner.rstrip("/").rpartition("/")[2], path, int(info["size"] or 0), info["type"] == "directory")


def entries_of(folder: str) -> list[Entry]:
    """Entries directly in a folder, sorted by name, without hidden files."""
    if is_remote(folder):
        filesystem, inner = filesystem_of(folder)
        with remote_errors(folder):
            found = filesystem.ls(inner, detail=True)
        names = [info["name"].rstrip("/").rpartition("/")[2] for info in found]
        entries = [
            Entry(name, f"{folder.rstrip('/')}/{name}", int(info["size"] or 0), info["type"] == "directory")
            for name, info in zip(names, found, strict=True)
        ]
    else:
        entries = [
            Entry(entry.name, str(entry), 0 if entry.is_dir() else entry.stat().st_size, entry.is_dir())
            for entry in Path(folder).iterdir()
            if entry.is_dir() or entry.is_file()  # no dangling link, and no pipe, whose reader would wait for ever
        ]
    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def files_below(folder: str) -> list[Entry]:
    """All files below a folder, sorted by name; names are relative to the folder.

    Of a local folder links are followed, and hidden folders are not entered. Raises OSError for a folder that cannot be read.
    """
    found: list[Entry] = []
    if is_remote(folder):
        filesystem, inner = filesystem_of(folder)
        start = inner.rstrip("/") + "/"
        with remote_errors(folder):
            for path, info in filesystem.find(inner, detail=True).items():
                name = (
                    path.removeprefix(start)
                    if path.startswith(start)
                    else path.lstrip("/").removeprefix(start.lstrip("/"))
                )
                found.append(Entry(name, f"{folder.rstrip('/')}/{name}", int(info["size"] or 0), False))
    else:
        for path in _walked(Path(folder)):
            found.append(Entry(path.relative_to(folder).as_posix(), str(path), path.stat().st_size, False))
    return sorted(found, key=lambda entry: entry.name)


def _walked(top: Path) -> Iterator[Path]:
    """Files below a local folder; linked folders come last, each once, and none that holds the folder itself."""

    def refuse(error: OSError) -> None:  # os.walk would pass over the folder
        raise error

    root = Path(os.path.realpath(top))
    entered: set[Path] = set()
    waiting = [top]
    while waiting:
        start = waiting.pop(0)
        real = Path(os.path.realpath(start))
        if real in entered or real in root.parents:
            continue
        for place, folders, names in os.walk(start, onerror=refuse):
            here = real / os.path.relpath(place, start)
            entered.add(here)
            folders[:] = [
                name
                for name in sorted(folders)
                if not name.startswith((".", "__MACOSX")) and here / name not in entered
            ]
            waiting += [path for name in folders if (path := Path(place, name)).is_symlink()]
            yield from (path for name in names if (path := Path(place, name)).is_file())  # as in `entries_of`


def read_bytes(path: Path | str) -> bytes:
    """Content of a file. Raises OSError if it cannot be read."""
    if isinstance(path, str) and is_remote(path):
        filesystem, inner = filesystem_of(path)
        return filesystem.cat_file(inner)
    return Path(path).read_bytes()


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file for partial reads."""
    if is_remote(path):
        filesystem, inner = filesystem_of(path)
        with remote_errors(path), filesystem.open(inner, "rb") as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


@contextmanager
def local_copies(paths: tuple[str, ...]) -> Iterator[tuple[Path, ...]]:
    """Files on a local disk: themselves, or copies in a temporary folder that is removed at the end of the block."""
    if not any(map(is_remote, paths)):
        yield tuple(map(Path, paths))
        return
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        copies = []
        for number, path in enumerate(paths):
            filesystem, inner = filesystem_of(path)
            copies.append(Path(folder, str(number), path.rpartition("/")[2]))
            copies[-1].parent.mkdir()
            filesystem.get_file(inner, str(copies[-1]))
        yield tuple(copies)


def filesystem_of(url: str, **options: Any) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises UserError for a protocol that is not installed."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{url}: cannot be opened: {message}; install what fsspec needs for it") from error


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Errors of a remote store as OSError with the URL."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error) or type(error).__name__, url) from error
