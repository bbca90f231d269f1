"""`generations.jsonl`: the record of a results folder, from which a job resumes."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pretrain.system.disk import writing
from pretrain.system.errors import UserError
from tokenization.files import write_atomically

RECORD = "generations.jsonl"
Place = tuple[int, int]  # number of the prompt, number of the sample


class Record:
    """The lines of a folder's `generations.jsonl`, by (prompt_index, sample_index).

    A result's files are written before its line, and the lines of a batch at once: what has a line is whole. After a
    kill a batch is made again as a whole, with the same shape and so to the last bit.
    """

    def __init__(self, folder: Path, remedy: str = "give another --output, or --overwrite") -> None:
        """Reads the file; a truncated last line is dropped. remedy: for results of another job, as the command takes it.

        Raises UserError for a file that is no record.
        """
        self.remedy = remedy
        self.folder, self.path = folder, folder / RECORD
        self.lines: dict[Place, dict] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                found = json.loads(line)
                self.lines[found["prompt_index"], found["sample_index"]] = found
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self.path} line {number}: not a result: move the file away") from None
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))

    def holds(self, place: Place, job: dict) -> bool:
        """Whether a result is recorded. Raises UserError if it is from another `job`."""
        line = self.lines.get(place)
        if line is None:
            return False
        there = {key: line.get(key) for key in job}
        job = json.loads(json.dumps(job))
        if there != job:
            key = next(key for key in job if there[key] != job[key])
            difference = _difference(key, there[key], job[key])
            raise UserError(f"{self.path} holds a result of another job ({difference}): {self.remedy}")
        if "error" not in line and all((self.folder / name).is_file() for name in files_of(line)):
            return True
        # Its pictures were removed, or its source may be mended by now: it is made again, and then has one line only.
        del self.lines[place]
        write_atomically(self.path, _lines(self.lines.values()))
        return False

    def add(self, lines: Sequence[dict]) -> None:
        """Append results in one write, flushed to disk on return."""
        with writing(self.path), self.path.open("ab") as file:
            file.write(_lines(lines))
            file.flush()
            os.fsync(file.fileno())
        self.lines |= {(line["prompt_index"], line["sample_index"]): json.loads(json.dumps(line)) for line in lines}

    def forget(self) -> None:
        """Remove the record and all files that it names."""
        for line in self.lines.values():
            for name in files_of(line):
                (self.folder / name).unlink(missing_ok=True)
        self.remove_sheets()
        self.path.unlink(missing_ok=True)
        self.lines = {}

    def sheets(self) -> list[Path]:
        """Contact sheets, the first one first."""
        return sorted(self.folder.glob("contact_sheet*.png"), key=lambda path: (len(path.name), path.name))

    def remove_sheets(self, but: Collection[str] = ()) -> None:
        """Remove the contact sheets, but not those of these names: there may have been more of them before."""
        for path in self.sheets():
            if path.name not in but:
                path.unlink()


def files_of(line: dict) -> list[str]:
    """File names of a result's images."""
    parts = [part["file"] for part in line.get("parts", []) if "file" in part]
    return [line["file"]] if "file" in line else parts


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Lock of a folder against a second job. Raises UserError if one is running."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--output {folder}: another job writes there: wait for it, or give another") from None
        yield


def _lines(lines: Iterable[dict]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _difference(name: str, there: object, now: object) -> str:
    """Difference between two values, in words; of two groups of settings only those that differ."""
    if isinstance(there, dict) and isinstance(now, dict):
        keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
        return ", ".join(
            _difference(f"{name}.{key}" if name != "settings" else key, there.get(key), now.get(key)) for key in keys
        )
    return f"{name} is {_short(there)} there, {_short(now)} now"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
