"""Atomic checkpoints with checksums: written to a temporary folder, published by one rename; the newest that verifies
is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from pretrain.coordination import Coordinator
from pretrain.fencing import PARTIAL, Attempt
from pretrain.system.disk import writing
from pretrain.system.errors import UserError

MANIFEST = "manifest.json"
PREFIX = "step_"


def folder_of(run: Path, step: int) -> Path:
    """Path of the checkpoint after `step` updates."""
    return run / "checkpoints" / f"{PREFIX}{step:08d}"


class SaveFailed(Exception):
    """A checkpoint could not be written on some rank; earlier checkpoints are untouched."""


def publish(
    run: Path,
    step: int,
    write: Callable[[Path], None],
    state: dict,
    keep: int,
    keep_every: int = 0,
    coordinator: Coordinator = Coordinator(),
    attempt: Attempt | None = None,
) -> Path:
    """Call `write` with an empty folder, add state.json and the checksums, publish, and delete checkpoints beyond those
    to keep.

    A collective: each rank writes its files, `__<rank>_*`, with checksums; rank 0 does the rest. A kill at any moment
    leaves either the old checkpoints or the old ones and the new one. Of the old ones the newest
    `keep` stay, the new one counted, and those of steps that `keep_every` divides. Raises SaveFailed on every process when
    any of them fails, also when `attempt` does not own the run any more.
    """
    final = folder_of(run, step)
    temporary = attempt.partial(final) if attempt else final.with_name(final.name + PARTIAL)
    rank = coordinator.rank

    def begin() -> None:
        if rank == 0:
            if attempt:
                attempt.check()
            for leftover in final.parent.glob(f"{PREFIX}*{PARTIAL}"):
                shutil.rmtree(leftover)
            temporary.mkdir(parents=True)

    def summed() -> dict:
        write(temporary)
        if rank == 0:
            (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        mine = [path for path in temporary.iterdir() if (_writer_of(path) or 0) == rank]
        return {path.name: _described(path) for path in sorted(mine)}

    def finish() -> None:
        if rank == 0:
            files = {name: entry for part in parts for name, entry in part.items()}
            (temporary / MANIFEST).write_text(
                json.dumps({"step": step, "files": files}, indent=1) + "\n", encoding="utf-8"
            )
            _sync(temporary / MANIFEST)
            _sync(temporary)
            if attempt:
                attempt.check()  # checked as late as possible: writing may have taken minutes
            _publish(temporary, final)
            _remove_old(run, final, keep, keep_every)

    parts: list[dict] = []
    for action in (begin, summed, finish):
        result, problem = coordinator.attempt(lambda: _on_disk(temporary, action))  # noqa: B023
        if problem:
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)  # frees space on a full disk
            raise SaveFailed(problem)
        if action is summed:
            parts = coordinator.gathered(result)
    return final


def _on_disk(folder: Path, action: Callable[[], Any]) -> Any:
    with writing(folder):
        return action()


def publish_alone(output: Path, write: Callable[[Path], None], state: dict) -> None:
    """Publish a checkpoint outside of any run, under a name of its own, from one process."""
    temporary = output.with_name(output.name + PARTIAL)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        files = {path.name: _described(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"step": 0, "files": files}, indent=1) + "\n", encoding="utf-8")
        _publish(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, final: Path) -> None:
    replaced = temporary.with_name(temporary.name.removesuffix(PARTIAL) + ".replaced" + PARTIAL)
    if temporary.is_dir() and final.exists():
        final.rename(replaced)
    try:
        temporary.rename(final)
    except FileNotFoundError:  # a newer attempt has removed it: the folder there is not ours to remove
        if replaced.exists():
            replaced.rename(final)
        raise
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _writer_of(path: Path) -> int | None:
    """Rank that wrote a file of tensors; None for other files, which rank 0 writes."""
    number = path.name.removeprefix("__").split("_")[0]
    return int(number) if path.name.startswith("__") and number.isdigit() else None


def _described(path: Path) -> dict:
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _remove_old(run: Path, newest: Path, keep: int, keep_every: int) -> None:
    """Delete old checkpoints. Newer ones than this step are damaged: otherwise the run would have resumed from them."""
    found = all_checkpoints(run)
    place = found.index(newest)
    for old in found[: max(0, place + 1 - keep)] + found[place + 1 :]:
        step = int(old.name.removeprefix(PREFIX))
        if old in found[place + 1 :] or not keep_every or step % keep_every:
            shutil.rmtree(old)


def all_checkpoints(run: Path) -> list[Path]:
    """Published checkpoints of a run, oldest first, without verifying them."""
    try:
        with os.scandir(run / "checkpoints") as entries:  # scandir: no stat call per entry
            names = [entry.name for entry in entries if entry.name.startswith(PREFIX) and entry.is_dir()]
    except OSError:
        return []
    return [run / "checkpoints" / name for name in sorted(names) if name[len(PREFIX) :].isdigit()]


def verify(checkpoint: Path, coordinator: Coordinator = Coordinator()) -> str | None:
    """Verify sizes and checksums of every file: None if all are right, else what is wrong, with the file's name.

    Processes share the files, so that a large checkpoint is read once; all get the same answer.
    """
    problem = _problem(checkpoint, coordinator.rank, coordinator.size)
    return next((found for found in coordinator.gathered(problem) if found), None)


def _problem(checkpoint: Path, part: int = 0, parts: int = 1) -> str | None:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = [(name, entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{checkpoint / MANIFEST} is missing or unreadable"
    if "state.json" not in manifest["files"]:
        return f"{checkpoint / MANIFEST} does not list state.json"
    for name, size, digest in files[part::parts]:
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes, {size} were written"
        try:
            if _sha256(path) != digest:
                return f"{path} does not have the checksum it was written with"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
    return None


def newest_good(
    run: Path, warn: Callable[[str], None], coordinator: Coordinator = Coordinator(), before: int | None = None
) -> Path | None:
    """Newest checkpoint that verifies, of steps below `before`; each newer one that does not is named through `warn`.

    A collective. Raises UserError when there are checkpoints and none verifies: starting over would hide the damage.
    """
    found = coordinator.gathered(all_checkpoints(run))[0]
    if before is not None:
        found = [checkpoint for checkpoint in found if int(checkpoint.name.removeprefix(PREFIX)) < before]
    for checkpoint in reversed(found):
        problem = verify(checkpoint, coordinator)
        if problem is None:
            _check_name(checkpoint)
            return checkpoint
        warn(f"checkpoint {checkpoint.name} is damaged and is passed over: {problem}")
    if found:
        raise UserError(f"{run}/checkpoints: none of {len(found)} checkpoints verifies: remove them to start again")
    return None


def _check_name(checkpoint: Path) -> None:
    """UserError for a checkpoint of a run that has the name of another step: the order of names decides which is newest
    and which are deleted. One that `publish_alone` made is of no run's step."""
    step = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8")).get("step")
    if isinstance(step, int) and step and step != int(checkpoint.name.removeprefix(PREFIX)):
        raise UserError(f"{checkpoint} holds step {step}: rename it to {PREFIX}{step:08d}, or move it elsewhere")


def find(path: Path, coordinator: Coordinator = Coordinator()) -> Path:
    """Resolve a run folder (its newest good checkpoint) or a checkpoint folder -> a checkpoint that verifies. Raises
    UserError."""
    if (path / MANIFEST).is_file() or path.name.startswith(PREFIX):
        problem = verify(path, coordinator)
        if problem:
            raise UserError(f"{problem}: the checkpoint is damaged, take an earlier one")
        return path
    warnings: list[str] = []
    found = newest_good(path, warnings.append, coordinator)
    if found is None:
        raise UserError(f"{path}: holds no checkpoint: give a run folder or one of its checkpoints/{PREFIX}*")
    for line in warnings:
        coordinator.warn(line)
    return found


def read_state(checkpoint: Path) -> dict:
    """The `state` that `publish` was given. Raises UserError for a file that is none."""
    return _read_object(checkpoint / "state.json")


def read_model(checkpoint: Path) -> ModelConfig:
    """Model configuration of a checkpoint. Raises UserError for settings that are missing, or that this release does not
    know: they may change what the weights compute."""
    path = checkpoint / "model.json"
    values = _read_object(path)
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(ModelConfig)})
    if unknown:
        raise UserError(
            f"{path}: {unknown[0]} is no setting of a model in this release: read it with the newer one that made it"
        )
    return ModelConfig.from_dict(values)


def _read_object(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: take another checkpoint") from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object: the checkpoint is damaged, take an earlier one")
    return found


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
