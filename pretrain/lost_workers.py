"""Loader workers that the kernel's OOM killer ended are restarted at the next row, with the same rows as without the
loss."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pretrain.system.errors import TryAgain
from pretrain.system.free_memory import free_memory

RESTARTS = 5  # restarts per process; more kills than that will not go away
LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")  # torch has no class for this error
MIB = 1 << 20


class WorkersLost(TryAgain):
    """Workers were killed repeatedly. The run saves a checkpoint and ends."""


class Sent(NamedTuple):
    """Item from a worker: a row or an error, and the worker's pid and memory."""

    item: Any
    process: int
    memory: int  # resident bytes


def sent(item: Any) -> Sent:
    """Wrap an item of this worker."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return Sent(item, os.getpid(), int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def restarting_workers(
    begin: Callable[[int], Iterator[Sent]],
    first: int,
    step: int,
    warn: Callable[[str], object],
    stopped: Callable[[], bool],
) -> Iterator[Any]:
    """Yield the items of rows `first`, `first` + `step`, ...; killed workers are restarted: `begin` starts them at a
    row.

    Workers are restarted at most RESTARTS times, each with a warning. Raises WorkersLost after that, and torch's own error
    where the run is `stopped` anyway: a signal may have gone to all its processes.
    """
    return _items(
        begin, begin(first), first, step, warn, stopped
    )  # the first workers start here, not with the first item


def _items(begin, items: Iterator[Sent] | None, row: int, step: int, warn, stopped) -> Iterator[Any]:
    restarts, held = 0, {}
    while True:
        try:
            items = begin(row) if items is None else items
            found = next(items)
        except (RuntimeError, OSError, EOFError) as error:
            named = LOST.search(str(error))
            # A worker that has sent a row also owns its shared memory: if it dies before the row is read, the connection
            # breaks, and torch may not know why yet. Errors of a worker's own code are marked by torch.
            broken = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and not str(error).startswith(
                "Caught"
            )
            if not (named or broken) or stopped():
                raise
            numbers = [int(number) for number in named[1].split(",")] if named else []
        else:
            held[found.process] = found.memory
            row += step
            yield found.item
            continue
        items, restarts = None, restarts + 1  # the other workers end with the iterator
        numbers = numbers or [number for number in held if not os.path.exists(f"/proc/{number}")]
        who = ", ".join(f"{number} ({_memory(held.get(number))})" for number in numbers)
        for number in numbers:
            held.pop(number, None)
        message = (
            f"loader worker {who or 'of an unknown number'} was killed at row {row}; this machine has {_available()} of "
            "memory left"
        )
        if restarts > RESTARTS:
            raise WorkersLost(
                f"{message}, and workers were begun again {RESTARTS} times: lower data.workers or ask for more "
                "memory, and start the run again: it goes on from here"
            )
        warn(f"{message}: workers begin again there ({restarts} of {RESTARTS} times)")


def _memory(held: int | None) -> str:
    return "it had handed over nothing yet" if held is None else f"it held {held / MIB:,.0f} MiB at its last row"


def _available() -> str:
    found = free_memory()
    return "an unknown amount" if found is None else f"{found / MIB:,.0f} MiB"
