"""Logging of a run through Python's logging: logger "uni_x", whose records have a `rank`.

The console has the plain line, with `warning: ` or `error: ` before it where due. For times, levels and ranks add a handler
to the logger, with %(asctime)s, %(levelname)s and %(rank)s in its format.
"""

from __future__ import annotations

import logging
import os
import sys

from pretrain.system.disk import tell

LOGGER = logging.getLogger("uni_x")
WORDS = {logging.WARNING: "warning: ", logging.ERROR: "error: "}


def with_rank(record: logging.LogRecord) -> bool:
    """Filter that keeps every record and adds the rank that torchrun or srun gave this process."""
    rank = os.environ.get("RANK", "")
    record.rank = int(rank) if rank.isdigit() else 0
    return True


class Console(logging.Handler):
    """Handler: lines to standard output, errors to standard error; lines that a full disk does not take are counted and
    reported later."""

    def __init__(self) -> None:
        super().__init__()
        self.unsaid = 0  # lines that could not be printed

    def emit(self, record: logging.LogRecord) -> None:
        line = WORDS.get(record.levelno, "") + record.getMessage()
        try:
            said = tell(line, sys.stderr if record.levelno >= logging.ERROR else sys.stdout)
        except BrokenPipeError:  # nobody reads the log any more, as after `| head`: the run folder has all of it
            said = False
        if not said:
            self.unsaid += 1
        elif self.unsaid:
            tell(f"warning: this log had no room for {self.unsaid} lines before the last one")
            self.unsaid = 0


class RankHandler(logging.Handler):
    """Handler that passes warnings and errors of this process to `write(time=..., level=..., message=...)`."""

    def __init__(self, write) -> None:
        super().__init__(logging.WARNING)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(time=round(record.created, 3), level=record.levelname.lower(), message=record.getMessage())


class EarlyWarnings(logging.Handler):
    """Handler that keeps the warnings and errors of a start until there is a log for them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: list[logging.LogRecord] = []

    def __enter__(self) -> EarlyWarnings:
        LOGGER.addHandler(self)
        return self

    def __exit__(self, *_error) -> None:
        LOGGER.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record)

    def pass_on(self, handler: logging.Handler) -> None:
        """Give what was kept to `handler`, in order, and keep no more."""
        LOGGER.removeHandler(self)
        for record in self._kept:
            handler.handle(record)
        self._kept.clear()


if not LOGGER.handlers:
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # libraries add handlers to the root logger, which would print each line again
    LOGGER.addFilter(with_rank)
    LOGGER.addHandler(Console())
