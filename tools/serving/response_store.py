"""In-memory store of image files and of responses that later requests refer to, with a time limit."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class ResponseStore:
    """Objects under random names, for `seconds` and at most `room` of them.

    When full, the oldest are evicted. `size` measures an object in the unit of `room`. For the event loop only.
    """

    def __init__(self, seconds: float, room: int, size: Callable[[Any], int] = lambda thing: 1) -> None:
        self.seconds, self.room, self.size = seconds, room, size
        self.things: OrderedDict[str, tuple[float, Any]] = OrderedDict()
        self.taken = 0

    def put(self, thing: Any, name: str | None = None) -> str:
        """Store an object -> its name."""
        name = name or secrets.token_urlsafe(24)
        self.things[name] = (time.monotonic() + self.seconds, thing)
        self.taken += self.size(thing)
        while self.things and (self.taken > self.room or next(iter(self.things.values()))[0] < time.monotonic()):
            self.drop(next(iter(self.things)))
        return name

    def get(self, name: str) -> Any | None:
        """The object of that name, if it is still there."""
        ends, thing = self.things.get(name, (0.0, None))
        return thing if ends >= time.monotonic() else None

    def drop(self, name: str) -> bool:
        """Delete an object -> whether there was one."""
        _, thing = self.things.pop(name, (0.0, None))
        self.taken -= 0 if thing is None else self.size(thing)
        return thing is not None
