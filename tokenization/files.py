"""Atomic file writes: after a kill or a power cut the old or the new file is there, whole (fsync, then rename)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.system.disk import writing
from pretrain.system.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically: fsync, then rename. OSError names the file; no temporary file is left."""
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
    """Replace `path` by UTF-8 text, as `write_atomically` does."""
    write_atomically(path, text.encode())


def save_picture(picture, path: Path) -> None:
    """Replace `path` by a PNG of a PIL image or a matplotlib figure, as `write_atomically` does."""
    content = io.BytesIO()
    save = getattr(picture, "savefig", None) or picture.save
    save(content, format="PNG")
    write_atomically(path, content.getvalue())


def output_folder(path: Path) -> None:
    """Create the folder of results before the work that makes them. Raises UserError if that is impossible, or if nothing
    can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made a folder ({error.strerror}): choose another --output") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: nothing can be written there: change its permissions, or choose another --output")


def check_outside(output: Path, inputs: Sequence[str]) -> None:
    """Raises UserError if `output` is one of these folders or lies in one: what is written there would be read as input by the
    next command."""
    for path in inputs:
        if "://" not in path and Path(path).is_dir() and output.resolve().is_relative_to(Path(path).resolve()):
            raise UserError(
                f"--output {output}: lies in the input {path}, which is read at any depth: choose another --output"
            )


def output_file(path: Path) -> None:
    """Create the folder of a result file before the work. Raises UserError if the file cannot be written."""
    output_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path}: is a folder: choose a file as --output")


def check_made_with(output: Path, summary: str, asked: dict[str, Any]) -> None:
    """Raises UserError if the JSON file `summary` of a finished folder says otherwise than `asked`, or cannot be read."""
    try:
        made = json.loads((output / summary).read_text(encoding="utf-8"))
        different = [name for name, value in asked.items() if made.get(name) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{output / summary}: cannot be read ({error.__class__.__name__}): remove {output}, or choose another --output"
        ) from None
    if different:
        name = different[0]
        raise UserError(
            f"{output}: was made with {name} {made.get(name)}, and now it is {asked[name]}: remove it, or choose another --output"
        )


def begin_folder(output: Path, summary: str, **asked: Any) -> Path | None:
    """Temporary empty folder for `output`, to be published by `publish_folder`; None, with a line, if it is finished.

    A finished folder holds the JSON file `summary`. Raises UserError if it says otherwise than `asked`, or if something else
    has the name.
    """
    if (output / summary).is_file():
        check_made_with(output, summary, asked)
        print(f"{output} is complete: {(output / summary).read_text(encoding='utf-8').strip()}")
        return None
    if output.exists():
        raise UserError(
            f"{output} exists and holds no {summary}, so it is not finished: remove it, or choose another --output"
        )
    output_folder(output.parent)
    temporary = output.with_name(output.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    return temporary


def publish_folder(temporary: Path, path: Path) -> None:
    """Rename a finished folder to its final name, after fsync of all its files."""
    sync_folder(temporary)
    os.rename(temporary, path)
    sync(path.parent)


def replace_folder(temporary: Path, path: Path) -> None:
    """As `publish_folder`, but replaces an existing folder: it is moved aside first, and removed last."""
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
    """Temporary folder whose files are moved into the folder `path` one by one, each whole; other files there stay."""
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
    """fsync all files and folders in a folder."""
    for entry in folder.iterdir():
        if entry.is_dir():
            sync_folder(entry)
        else:
            sync(entry)
    sync(folder)


def sync(path: Path) -> None:
    """fsync a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Temporary name of this process for `path`: beside it, hidden, and recognizable after a kill.

    Every process has a name of its own, so that two that make the same thing are not in each other's way.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a file or folder has a temporary name: left by a killed process, or in progress."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
