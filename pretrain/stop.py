"""Graceful shutdown: a run that gets a signal finishes its step, saves and ends."""

from __future__ import annotations

import contextlib
import signal

from pretrain.system.disk import tell

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Set by SIGINT, SIGTERM and SIGUSR1, which schedulers send ahead of the end: the loop then finishes its step,
    saves and leaves. It restores the previous handlers at its end."""

    def __init__(self):
        self.asked, self.signal = False, ""

    def __enter__(self) -> Stop:
        self.before = {number: signal.signal(number, self._ask) for number in STOPPING_SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, _frame) -> None:
        if self.asked:
            raise KeyboardInterrupt  # second signal: do not wait for the step
        self.asked = True
        self.signal = signal.Signals(number).name
        with contextlib.suppress(BrokenPipeError):  # nobody reads the log: the step is saved all the same
            tell(f"{self.signal}: saving after this step, then stopping")
