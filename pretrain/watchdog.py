"""Watchdog: ends a hung process and writes its stacks, so that a scheduler can restart it."""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from pathlib import Path

from pretrain.system.disk import tell

HUNG = 75  # exit code, sysexits.h's "temporary failure": a restart is worthwhile
REMEMBERED = 32  # steps whose median is taken
GRACE = 5.0  # seconds for the other ranks to notice it too, before the first exit breaks their connections


class Watchdog:
    """Watchdog thread of a process. It is notified of each end of a step, and of each end of work between steps."""

    def __init__(self, stacks: Path, factor: float, seconds: float, rank: int = 0):
        """stacks: the file for the stack traces. factor: of the median step time, but at least `seconds`; 0: never."""
        self.stacks, self.factor, self.seconds, self.rank = stacks, factor, seconds, rank
        self.times: deque[float] = deque(maxlen=REMEMBERED)
        self.last = time.monotonic()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.factor:
            self.last = time.monotonic()
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()

    def step(self, seconds: float) -> None:
        """Note a finished step of so many seconds."""
        self.times.append(seconds)
        self.alive()

    def alive(self) -> None:
        """Note other progress: a save, an evaluation, sample images."""
        self.last = time.monotonic()

    def limit(self) -> float:
        """Seconds without progress after which this process counts as hung."""
        return max(self.seconds, self.factor * statistics.median(self.times)) if self.times else self.seconds

    def _watch(self) -> None:
        while not self.stopped.wait(min(1.0, self.seconds / 4)):
            silent = time.monotonic() - self.last
            if silent > self.limit():
                self._leave(silent)

    def _leave(self, silent: float) -> None:
        line = f"rank {self.rank}: no step has ended for {silent:.0f} s (limit {self.limit():.0f} s)"
        try:
            self.stacks.parent.mkdir(parents=True, exist_ok=True)
            with open(self.stacks, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:  # the file system may be what hangs
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        tell(f"error: {line}: stacks are in {self.stacks}; start the run again", sys.stderr)
        time.sleep(GRACE)
        os._exit(HUNG)
