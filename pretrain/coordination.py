"""Coordination of a run's processes over gloo: errors, stopping, rank-0 logging. Apart from the training's process
groups.

An error of one process would leave the others waiting in their next collective. Here it is raised on all processes at the
same point, and reported by one of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

from pretrain.system.disk import disk_error, error_text
from pretrain.system.errors import ReportedByOtherRank, TryAgain, UserError
from pretrain.system.logs import LOGGER

Result = TypeVar("Result")
HEARD_SECONDS = 5.0  # seconds between heartbeats during a long work of one process


class Coordinator:
    """All processes of a run, with rank-0 logging. A single process sends nothing and needs no process group."""

    def __init__(self, rank: int = 0, size: int = 1, group=None):
        self.rank, self.size, self.group = rank, size, group

    def log(self, level: int, line: str) -> None:
        """Log a line once for all processes."""
        if self.rank == 0:
            LOGGER.log(level, line)

    def say(self, line: str) -> None:
        """Log once at level INFO."""
        self.log(logging.INFO, line)

    def warn(self, line: str) -> None:
        """Log once at level WARNING; the console adds `warning: `."""
        self.log(logging.WARNING, line)

    def largest(self, value: int) -> int:
        """Maximum of a value over all processes (all-reduce)."""
        if self.size == 1:
            return value
        import torch

        values = torch.tensor([value])
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return int(values)

    def gathered(self, value: Any) -> list:
        """Values of all processes, by rank (all-gather)."""
        if self.size == 1:
            return [value]
        import torch

        values: list = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def attempt(self, action: Callable[[], Result]) -> tuple[Result | None, str | None]:
        """Run a function on every process -> (its result here, None), or on every process (None, the first error's
        text)."""
        result, problem = None, None
        try:
            result = action()
        except Exception as error:  # an interrupt is not shared: every process gets its own signal
            found = disk_error(error)
            problem = error_text(found) if found else f"{error.__class__.__name__}: {' '.join(str(error).split())}"
        problems = [found for found in self.gathered(problem) if found]
        return (None, problems[0]) if problems else (result, None)

    def all_do(self, action: Callable[[], Result]) -> Result:
        """Run a function on every process. If it fails anywhere, all raise: the first that failed its own error, the
        others ReportedByOtherRank with that error's exit code."""
        result: Result | None = None
        error: Exception | None = None
        try:
            result = action()
        except Exception as raised:
            error = raised
        codes = self.gathered(None if error is None else exit_code(error))
        failed = [rank for rank, code in enumerate(codes) if code is not None]
        if error is not None and failed[0] == self.rank:
            raise error
        if failed:
            raise ReportedByOtherRank(codes[failed[0]])
        return cast(Result, result)  # nothing failed

    def first_does(self, action: Callable[[], Result]) -> Result:
        """Run a function on rank 0 and broadcast its result, or its failure."""
        return self.gathered(self.all_do(lambda: action() if self.rank == 0 else None))[0]

    def wait_for_first(
        self, action: Callable[[Callable[[], None]], Result], alive: Callable[[], None]
    ) -> Result | None:
        """Run a long function on rank 0 -> its result there, None elsewhere; a failure is raised everywhere, as in
        `all_do`.

        action: is given a function to call often, through which the others hear of it: however long it takes, none of them
        waits in a collective for longer than there is between two calls. alive: called on every rank meanwhile.
        """
        result, error, heard = None, None, time.monotonic()

        def going_on() -> None:
            nonlocal heard
            if time.monotonic() - heard >= HEARD_SECONDS:
                self.largest(0)
                alive()
                heard = time.monotonic()

        if self.rank == 0:
            try:
                result = action(going_on)
            except Exception as raised:
                error = raised
            self.largest(1)
        else:
            while not self.largest(0):
                alive()

        def end() -> None:
            if error is not None:
                raise error

        self.all_do(end)
        return result


def all_processes(timeout: float = 1800.0) -> Coordinator:
    """Coordinator over the default process group's ranks, with a gloo group of its own and a `timeout` in seconds."""
    import torch

    size = torch.distributed.get_world_size()
    if size == 1:
        return Coordinator()
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    return Coordinator(torch.distributed.get_rank(), size, group)


def exit_code(error: Exception) -> int:
    """Exit code of a command that ends with this error."""
    return 2 if isinstance(error, UserError) else 75 if isinstance(error, TryAgain) else 1


def lost_processes(error: BaseException) -> bool:
    """Whether a collective failed because other processes ended or timed out: gloo says so in its message only."""
    import torch

    if isinstance(error, torch.distributed.DistError):
        return True
    message = str(error)
    return any(
        words in message for words in ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of the processor or of the GPU was not enough: torch's CPU allocator says so in its message only."""
    import torch

    words = "DefaultCPUAllocator: "
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and words in str(error)
    )
