"""Disk errors (full, quota, read-only, I/O): found in the chain of an error, and reported with the path and the
remedy."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDIES = {
    **dict.fromkeys(ROOM, "make room there, or have the quota raised"),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "choose a place that you may write to, or change its permissions"
    ),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "see that the disk or the file server is well"),
}
IN_THE_WAY = {  # no trouble of a disk, and no fault of a program: what a path leads to
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR), "move what is in the way there, or choose another place"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), "choose another place"),
}
RUST = re.compile(r"\(os error (\d+)\)")  # system errors in messages of safetensors and tokenizers


def disk_error(error: BaseException | None) -> OSError | None:
    """Disk error behind an exception, with errno and message; None if it is none of REMEDIES.

    torch and safetensors tell of a full disk in errors of their own, torch's ("unexpected pos") without naming it. What an
    error was raised from counts whatever it is; what was merely being handled counts where it is a lack of room.
    """
    numbers = tuple(REMEDIES)
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return error
        found = RUST.search(str(error))
        if found and int(found[1]) in numbers:
            return OSError(int(found[1]), os.strerror(int(found[1])))
        numbers = numbers if error.__cause__ else ROOM
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context in which disk errors name a file: their own, or this one."""
    try:
        yield
    except Exception as error:
        found = disk_error(error)
        if found is None or (found is error and found.filename is not None):
            raise
        raise OSError(
            found.errno, found.strerror or os.strerror(found.errno or 0), str(found.filename or path)
        ) from error


def tell(line: str, file: TextIO | None = None) -> bool:
    """Print a line -> whether it was written: a full disk under a log must not end the program.

    Past Python's buffer, which keeps a line that could not be written for later: it would be there, and counted as lost.
    """
    stream = file or sys.stdout
    try:
        raw = getattr(getattr(stream, "buffer", None), "raw", None)  # none where Python is unbuffered, or in a test
        if raw is None:
            print(line, file=stream, flush=True)
            return True
        stream.flush()
        left = memoryview(f"{line}\n".encode(stream.encoding, stream.errors or "strict"))
        while left:
            written = raw.write(left)
            if written is None:  # a terminal that another program has set to not waiting, and that is busy
                time.sleep(0.01)
            left = left[written or 0 :]
    except OSError as error:
        if disk_error(error) is None:
            raise
        return False
    return True


def discard_unwritten_output() -> None:
    """Discard unwritten output: otherwise Python would end with an exit code of its own."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed from the start
        try:
            stream.flush()
        except OSError as error:
            if disk_error(error) is not None or isinstance(error, BrokenPipeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:  # closed
            pass


def error_text(error: OSError, path: str | Path = "") -> str:
    """Error text `FILE: what is wrong`; `path` where the error names no file."""
    name = error.filename or path
    return f"{name}: {error.strerror or error}" if name else str(error.strerror or error)
