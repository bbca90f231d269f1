"""Writing files so that a kill or a power cut leaves the old one or the new one, never half of one."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.system.disk import writing
from pretrain.system.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, on disk before it has its name. OSError names the file, and nothing is left of it."""
    temporary = temporary_name(path)
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a text in UTF-8, as `write_atomically` does."""
    write_atomically(path, text.encode())


def save_picture(picture, path: Path) -> None:
    """Replace `path` by a PNG of a PIL picture or a matplotlib figure, as `write_atomically` does."""
    content = io.BytesIO()
    save = getattr(picture, "savefig", None) or picture.save
    save(content, format="PNG")
    write_atomically(path, content.getvalue())


def output_folder(path: Path) -> None:
    """Make the folder that results go to, before the work that makes them. Raises UserError where that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made a folder ({error.strerror}): choose another --output") from None


def output_file(path: Path) -> None:
    """Make the folder of a file that results go to, before the work. Raises UserError where the file cannot be made."""
    output_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path}: is a folder: choose a file as --output")


def begin_folder(output: Path, summary: str) -> Path | None:
    """An empty place in which to make `output`, for `publish_folder`; None, told in a line, if it is finished.

    A finished folder holds the file `summary`. Raises UserError if something else has the name.
    """
    if (output / summary).is_file():
        print(f"{output} is complete: {(output / summary).read_text(encoding='utf-8').strip()}")
        return None
    if output.exists():
        raise UserError(
            f"{output} exists and holds no {summary}, so it is not finished: remove it, or choose another --output"
        )
    temporary = output.with_name(output.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def publish_folder(temporary: Path, path: Path) -> None:
    """Give a finished folder its name, everything in it on disk before that."""
    sync_folder(temporary)
    os.rename(temporary, path)
    sync(path.parent)


def replace_folder(temporary: Path, path: Path) -> None:
    """As `publish_folder`, but what has the name may be there: it goes aside first, and is removed last."""
    sync_folder(temporary)
    old = temporary_name(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def files_for(path: Path) -> Iterator[Path]:
    """A place in which to make files that then go into the folder `path`, one by one and whole; others there stay."""
    temporary = temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(path):
            temporary.mkdir()
            yield temporary
            sync_folder(temporary)
            for file in sorted(temporary.iterdir()):
                os.replace(file, path / file.name)
            sync(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Wait until everything in a folder is on disk."""
    for entry in folder.iterdir():
        if entry.is_dir():
            sync_folder(entry)
        else:
            sync(entry)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Where this process prepares `path`: beside it, hidden, and known as ours to whoever finds it after a kill.

    Every process has a name of its own, so that two that make the same thing are not in each other's way.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a file or folder was being prepared when its process ended, or is just being prepared."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
