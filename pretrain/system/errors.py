"""Errors of commands: one line for the user, and the exit code (2: user, 1: run, 75: try again).

Exit codes: 0 done, 1 failed while running, 2 wrong usage, configuration or input, 75 lost something that may be back when
the command is started again, 130 interrupted.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from pretrain.system.disk import IN_THE_WAY, REMEDIES, discard_unwritten_output, disk_error, error_text, tell


class UserError(Exception):
    """An error that the user can fix. The message is one line: the file, the value, and what to do."""


class RunFailed(Exception):
    """A run that cannot go on, for a known reason. The message is one line: what happened, and what to do."""


class TryAgain(Exception):
    """A run that lost an outside resource, as its other processes. The message is one line; a restart may go on."""


class ReportedByOtherRank(SystemExit):
    """Ends a process whose error another rank reports, so that it is reported once. Holds the exit code."""

    code: int


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and exit: a `UserError`, `RunFailed` or `TryAgain` becomes one line on stderr, with exit
    code 2, 1 or 75; disk errors likewise, with exit code 1.

    Any other exception keeps its traceback, because it is a fault of ours that a report should carry.
    """
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except TryAgain as error:
        print(f"error: {error}", file=sys.stderr)
        code = 75
    except ReportedByOtherRank as other:
        code = other.code
        if "TORCHELASTIC_RUN_ID" in os.environ:
            wait_to_be_ended(20.0)
    except ModuleNotFoundError as error:
        if importlib.util.find_spec("torch"):
            raise  # a broken installation
        print(
            f"error: {sys.executable} has no {error.name}: run make setup, then source .venv/bin/activate",
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt:
        print("interrupted: what is published under its final name is whole", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output ended, as `| head` does
        sys.stderr.close()
        code = 0
    except Exception as error:
        found = disk_error(error)
        if found is None and isinstance(error, OSError) and error.filename and error.errno in IN_THE_WAY:
            found = error
        if found is None:
            raise
        remedy = (REMEDIES | IN_THE_WAY)[found.errno or 0]
        tell(
            f"error: {error_text(found, named_output())}: {remedy}, and run the same command again",
            sys.stderr,
        )
        code = 1
    discard_unwritten_output()
    sys.exit(code)


def named_output() -> str:
    """The --output of the command line, for errors that name no file."""
    for before, word in zip(["", *sys.argv], [*sys.argv, ""]):
        if before == "--output" or word.startswith("--output="):
            return word.removeprefix("--output=")
    return ""


def wait_to_be_ended(seconds: float) -> None:
    """Return at SIGTERM, or after this long.

    torchrun ends all processes of a run as soon as one has left. The first to leave must be the one that tells what is
    wrong, or it is ended before it could.
    """
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    end = time.monotonic() + seconds
    while not ended and time.monotonic() < end:
        time.sleep(0.1)
