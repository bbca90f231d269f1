"""JSON-lines files that grow with a run, read backwards from their end: the last lines of a long file are cheap to
read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 16  # bytes read at a time; larger ones, further from the end
LARGEST = 1 << 22


def lines_backwards(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (offset of the byte after it, line without its end) of a file, newest first; nothing if there is no file.

    What follows the last line's end, a line that is being written or that a kill has cut, comes first where there is any.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError:
        return
    with file:
        begin = after = file.seek(0, 2)
        rest, size, ends = (
            b"",
            BLOCK,
            0,
        )  # incomplete first line of the chunk; bytes after the last one
        while begin:
            size = min(size, begin)
            begin -= size
            file.seek(begin)
            rest, *pieces = (file.read(size) + rest).split(b"\n")
            for line in reversed(pieces):
                if line:
                    yield after, line
                after, ends = after - len(line) - ends, 1
            size = min(2 * size, LARGEST)
        if rest:
            yield after, rest


def last_objects(path: Path, key: str = "", count: int = 1) -> list[dict]:
    """The last `count` JSON objects of a file, in the file's order; only those that have `key` if one is given."""
    wanted, found = json.dumps(key).encode() if key else b"", []
    for _, line in lines_backwards(path):
        if wanted in line and (value := parsed(line)) is not None and (not key or key in value):
            found.append(value)
            if len(found) == count:
                break
    return found[::-1]


def parsed(line: bytes | str) -> dict | None:
    """Parse a JSON object; None for anything else."""
    try:
        found = json.loads(line)
    except ValueError:  # UnicodeDecodeError, too
        return None
    return found if isinstance(found, dict) else None
