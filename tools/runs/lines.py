"""Lines of a run's files that can be used, and a count of those that cannot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.json_lines import lines_backwards, parsed
from pretrain.system.words import counted


def is_number(value: Any) -> bool:
    """Whether a value is a number, which JSON's true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def of_metrics(line: dict) -> bool:
    """A line of metrics.jsonl: a step, and numbers."""
    return type(line.get("step")) is int and all(map(is_number, line.values()))


def of_starts(line: dict) -> bool:
    """A line of starts.jsonl, as far as it is shown."""
    processes = line.get("processes", 1)
    return type(processes) is int and processes > 0 and isinstance(line.get("time", ""), str)


def of_restarts(line: dict) -> bool:
    """A line of restarts.jsonl: an attempt that ended."""
    numbers = [line.get(name) for name in ("ended", "from_step", "to_step", "saved_step")]
    known = {"attempt", "ranks", "decision", "reason"} <= line.keys()
    return known and all(map(is_number, [*numbers, line.get("resumed_step") or 0]))


def of_events(line: dict) -> bool:
    """A line of events.jsonl, whose times are compared."""
    return isinstance(line.get("time", ""), str)


def of_ranks(line: dict) -> bool:
    """A line of a rank's log: the times of a step."""
    times = [line.get(name, 0.0) for name in ("seconds", "waited_rows", "alone")]
    return type(line.get("step")) is int and all(map(is_number, times))


def left_out(count: int, file: Path | str) -> str:
    """What is said of a file's damaged lines."""
    return f"{counted(count, 'line')} of {file} cannot be read, and {'is' if count == 1 else 'are'} left out"


class Lines:
    """Reads JSON lines below a folder from their end, and counts what is passed over as damaged, each line once.

    A last line without its end is being written, or was when the run was killed: it is no damage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._damaged: set[tuple[str, int]] = set()  # (file, offset)

    @property
    def damaged(self) -> dict[str, int]:
        """Name of a file -> its damaged lines among those that were looked at."""
        return dict(Counter(name for name, _ in sorted(self._damaged)))

    def last(self, path: Path, fits: Callable[[dict], bool], key: str = "", count: int = 0) -> list[dict]:
        """The last `count` lines (0: all) that have `key` and fit, in the file's order."""
        wanted, found = json.dumps(key).encode() if key else b"", []
        end = path.stat().st_size if path.is_file() else 0
        for after, line in lines_backwards(path) if end else ():
            if key and wanted not in line and line[:1] == b"{" and line[-1:] == b"}":
                continue  # parsing all lines of a long run would take seconds
            value = parsed(line)
            if value is None or not fits(value):
                whole = value is not None or after < end or _ends_a_line(path)
                if whole:
                    self._damaged.add((path.relative_to(self.folder).as_posix(), after))
            elif not key or key in value:
                found.append(value)
                if len(found) == count:
                    break
        return found[::-1]


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
