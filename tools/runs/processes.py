"""A training run in several processes of this machine, as `torchrun --standalone --nproc-per-node N` starts it.

At Ctrl-C torchrun (torch 2.13) ends in a traceback of its own and with exit code 1, though the processes have saved, and kills those that
are not done after 30 s. Here they are waited for, and nothing is added to what they say.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

GRACE = 60.0
"""Seconds that the other processes have to end by themselves after one has failed."""


def run_processes(words: Sequence[str], count: int, environment: Mapping[str, str]) -> int:
    """Run `python *words` in `count` processes; returns 0, or the exit code of the one that failed first.

    They find each other at 127.0.0.1 and have one OpenMP thread each unless `environment` says otherwise. When one fails,
    the others are told to stop. Raises KeyboardInterrupt after all have ended, if Ctrl-C came, of which a terminal tells
    each process. To be called in the main thread.
    """
    shared = {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **environment,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    ranks: list[subprocess.Popen] = []
    interrupted: list[int] = []  # by a handler: an exception could come between two lines, and end all without saving
    before = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    try:
        for number in range(count):
            own = {"RANK": str(number), "LOCAL_RANK": str(number)}
            ranks.append(subprocess.Popen([sys.executable, *words], env={**shared, **own}))
        failed, end = 0, float("inf")
        while any([rank.poll() is None for rank in ranks]) and time.monotonic() < end:
            time.sleep(0.1)
            codes = [rank.returncode for rank in ranks if rank.returncode]
            if codes and not failed:
                failed, end = codes[0], time.monotonic() + GRACE
                _tell([rank for rank in ranks if rank.returncode is None], signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    if interrupted:
        raise KeyboardInterrupt
    return failed or next((rank.returncode for rank in ranks if rank.returncode), 0)


def free_port() -> int:
    """A TCP port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _tell(ranks: Sequence[subprocess.Popen], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            os.kill(rank.pid, number)
