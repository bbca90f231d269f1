"""Checkpoints that are whole or not there: written aside, summed, published by one rename; the newest that verifies wins."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from model.errors import UserError

MANIFEST = "manifest.json"
PREFIX = "step_"


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint made after `step` updates lives."""
    return run / "checkpoints" / f"{PREFIX}{step:08d}"


def publish(run: Path, step: int, write: Callable[[Path], None], state: dict, keep: int) -> Path:
    """Call `write` with an empty folder, add state.json and the checksums, publish, and drop checkpoints beyond `keep`.

    A kill at any moment leaves either the old checkpoints or the old ones and the new one.
    """
    final = folder_of(run, step)
    for leftover in final.parent.glob(f"{PREFIX}*.partial"):
        shutil.rmtree(leftover)
    temporary = final.with_name(final.name + ".partial")
    temporary.mkdir(parents=True)
    write(temporary)
    (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    files = {}
    for path in sorted(temporary.iterdir()):
        _sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    (temporary / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1) + "\n", encoding="utf-8")
    _sync(temporary / MANIFEST)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync(final.parent)
    found = all_checkpoints(run)
    newest = found.index(final)  # what is newer was damaged, or the run would have gone on from there
    for old in found[: max(0, newest + 1 - keep)] + found[newest + 1 :]:
        shutil.rmtree(old)
    return final


def all_checkpoints(run: Path) -> list[Path]:
    """Published checkpoints of a run, the oldest first; whether they verify is not looked at."""
    folder = run / "checkpoints"
    found = folder.glob(f"{PREFIX}*") if folder.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and path.name[len(PREFIX) :].isdigit())


def verify(checkpoint: Path) -> str | None:
    """None when every file is there with its size and checksum; else what is wrong, naming the file."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = [(name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{checkpoint / MANIFEST} is missing or unreadable"
    for name, size, digest in files:
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes, {size} were written"
        if _sha256(path) != digest:
            return f"{path} does not have the checksum it was written with"
    return None


def newest_good(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; each newer one that does not is named through `warn`.

    Raises UserError when there are checkpoints and none verifies: starting again by itself would hide the damage.
    """
    found = all_checkpoints(run)
    for checkpoint in reversed(found):
        problem = verify(checkpoint)
        if problem is None:
            return checkpoint
        warn(f"checkpoint {checkpoint.name} is damaged and is passed over: {problem}")
    if found:
        raise UserError(f"{run}/checkpoints: none of {len(found)} checkpoints verifies: remove them to start again")
    return None


def find(path: Path) -> Path:
    """A run folder (its newest good checkpoint) or a checkpoint folder -> a checkpoint that verifies, or UserError."""
    if (path / MANIFEST).is_file() or path.name.startswith(PREFIX):
        problem = verify(path)
        if problem:
            raise UserError(f"{problem}: the checkpoint is damaged, take an earlier one")
        return path
    warnings: list[str] = []
    found = newest_good(path, warnings.append)
    if found is None:
        raise UserError(f"{path}: holds no checkpoint: give a run folder or one of its checkpoints/{PREFIX}*")
    for line in warnings:
        print(f"warning: {line}")
    return found


def read_state(checkpoint: Path) -> dict:
    """What `publish` was given as `state`."""
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
