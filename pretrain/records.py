"""Records of a run on a disk that may be full: writes are kept in memory and retried, and never end a run."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pretrain.system.disk import error_text
from pretrain.system.logs import LOGGER
from tokenization.files import write_atomically

MOST_BYTES = 1 << 28  # bytes pending in memory; more is lost, and counted


class Waiting(NamedTuple):
    """A pending write: an append, or a whole file."""

    path: Path
    data: bytes
    whole: bool


class Records:
    """Writer of those files in a run folder that belong to this process.

    Failed writes are kept in memory, in order, and retried with the next write. One warning is logged when that begins, and
    one line when it ends.
    """

    def __init__(self, log: Callable[[int, str], None], allowed: Callable[[], bool] = lambda: True):
        """log: takes a logging level and a line. allowed: whether this process may still write here (fencing)."""
        self._log, self._allowed = log, allowed
        self._files: dict[Path, int] = {}  # descriptors
        self._sizes: dict[Path, int] = {}  # complete bytes of files whose last write failed
        self._waiting: deque[Waiting] = deque()
        self._bytes, self._waited = 0, 0
        self._lost: Counter[Path] = Counter()

    def append(self, path: Path, data: bytes) -> None:
        """Append to a file, whole or not at all."""
        self._take(Waiting(path, data, False))

    def put(self, path: Path, data: bytes) -> None:
        """Create or replace a file, whole or not at all."""
        self._take(Waiting(path, data, True))

    def release(self, path: Path) -> bytes:
        """Stop writing to a file that is about to be changed or replaced -> its pending appends, which are no longer
        pending."""
        self._close(path)
        waiting = [waiting for waiting in self._waiting if waiting.path == path]
        for each in waiting:
            self._waiting.remove(each)
            self._bytes -= len(each.data)
        return b"".join(each.data for each in waiting)

    def close(self) -> None:
        """Last retry. Every process logs what it loses."""
        self._write()
        for waiting in self._waiting:
            self._lost[waiting.path] += 1
        self._waiting.clear()
        if self._lost and self._allowed():
            files = ", ".join(f"{count} of {path}" for path, count in self._lost.items())
            LOGGER.error(f"records that could not be written are lost: {files}")
        for file in self._files.values():
            with contextlib.suppress(OSError):
                os.close(file)
        self._files = {}

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _take(self, waiting: Waiting) -> None:
        if self._bytes + len(waiting.data) > MOST_BYTES:
            self._lost[waiting.path] += 1
        else:
            self._waiting.append(waiting)
            self._bytes += len(waiting.data)
        self._write()

    def _write(self) -> None:
        while self._waiting and self._allowed():
            first = self._waiting[0]
            try:
                self._write_one(first)
            except OSError as error:
                if not self._waited:
                    self._log(
                        logging.WARNING,
                        f"{error_text(error, first.path)}: what this run records is kept in memory until there is "
                        "room, and training goes on",
                    )
                self._waited = max(self._waited, len(self._waiting))
                return
            self._waiting.popleft()
            self._bytes -= len(first.data)
        if self._waited and not self._waiting:
            self._log(logging.INFO, f"there is room again: {self._waited} records that waited are written")
            self._waited = 0

    def _write_one(self, waiting: Waiting) -> None:
        path = waiting.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if waiting.whole:
            write_atomically(path, waiting.data)
            self._close(path)  # the open file is the one before the replacement
            return
        if path not in self._files:
            self._files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        file = self._files[path]
        if path in self._sizes:  # the last try wrote a part
            os.ftruncate(file, self._sizes[path])
        size, left = os.fstat(file).st_size, memoryview(waiting.data)
        self._sizes[path] = size
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            raise
        del self._sizes[path]

    def _close(self, path: Path) -> None:
        size, file = self._sizes.pop(path, None), self._files.pop(path, None)
        if file is not None:
            with contextlib.suppress(OSError):
                if size is not None:  # the last try may have written a part
                    os.ftruncate(file, size)
                os.close(file)
