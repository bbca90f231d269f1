"""Check of what a command is to write at its end, before the minutes that it takes to get there."""

from __future__ import annotations

import os
from pathlib import Path

from pretrain.system.errors import UserError


def check_output_file(path: Path | None, option: str) -> None:
    """Raises UserError when no file can be written there; None is no file. Folders that are missing can be made."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder: name a file")
        above = next(folder for folder in path.absolute().parents if folder.exists())
    except (OSError, ValueError) as error:  # too long a name, or one with a character that no file has
        raise UserError(f"{option} {path!s:.80}: is no name of a file ({error.__class__.__name__})") from None
    if not above.is_dir() or not os.access(path if path.exists() else above, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written: choose a place that you may write to")


def check_output_folder(path: Path, option: str) -> None:
    """Raises UserError when there can be no such folder, or nothing can be written in it. It is not made."""
    try:
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {path!s:.80}: is no name of a folder ({error.__class__.__name__})") from None
    if not there.is_dir():
        raise UserError(f"{option} {path}: {there} is a file: give another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{option} {path}: nothing can be written in {there}: change its permissions, or give another folder"
        )


def check_own_output(path: Path, option: str, shared: str, own: str) -> None:
    """Raises UserError where `shared`, a file that several commands write, lies without `own`, this command's."""
    if (path / shared).exists() and not (path / own).exists():
        raise UserError(f"{option} {path}: {path / shared} is not of this command: give another folder")
