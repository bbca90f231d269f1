"""How a command tells its user that something is wrong: one line, and the exit code that says whose turn it is.

Exit codes: 0 done, 1 failed while running, 2 wrong usage, configuration or input, 75 lost something that may be back when
the command is started again, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something that the user can mend. The message is one line: the file, the value, and what to do."""


class RunFailed(Exception):
    """A run that could not go on, for a reason that is known. The message is one line: what happened, and what to do."""


class TryAgain(Exception):
    """A run that lost what is not its own, as the other processes. The message is one line; started again, it may go on."""


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and exit: a `UserError`, `RunFailed` or `TryAgain` becomes one line on stderr, with exit code
    2, 1 or 75.

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
    except KeyboardInterrupt:
        print("interrupted: what is published under its final name is whole", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        sys.stderr.close()
        code = 0
    sys.exit(code)
