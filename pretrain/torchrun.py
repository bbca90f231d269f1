"""How long torchrun lets the processes of a run save when it is told to stop.

At Ctrl-C or SIGTERM torchrun (torch 2.13) passes the signal on, waits 30 s, kills what is left and ends with exit code 1. Its option
--shutdown-timeout, or the environment variable TORCH_ELASTIC_SHUTDOWN_TIMEOUT, changes the seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

STARTED_BY_TORCHRUN, SECONDS = "TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


def notice(environment: Mapping[str, str], launcher: Sequence[str]) -> str:
    """Line about the 30 s, empty if torchrun did not start this process or was told how long to wait.

    launcher: command line of the process that started this one, empty where it is not known.
    """
    options = ("--shutdown-timeout", "--shutdown_timeout")
    if STARTED_BY_TORCHRUN not in environment or environment.get(SECONDS):
        return ""
    if any(word.partition("=")[0] in options for word in launcher):
        return ""
    return (
        "torchrun kills its processes 30 s after Ctrl-C or SIGTERM, saved or not: where saving takes longer, start it with "
        "--shutdown-timeout 600"
    )


def launcher_words() -> list[str]:
    """Command line of this process's parent; empty where /proc does not have it."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
