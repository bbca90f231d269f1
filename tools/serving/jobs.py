"""Jobs for the model, and the queue to the thread that owns it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from tools.generation.prompts import Sampling
from tools.serving.api_error import ApiError


class Event(NamedTuple):
    """Event of a job from the model's thread. `kind`, then what `value` is:

    `text`: more of text `row`; `stopped`: why that text ended, `stop` or `length`;
    `judged`: the Judged tokens of text `row`; `partial`: picture `row` so far, the
    `index`-th time; `picture`: the whole picture `row`; `end`: a Usage, after which nothing follows; `error`: an
    ApiError, likewise; `gone`: the client left.
    """

    kind: str
    value: Any = None
    row: int = 0
    index: int = 0  # type: ignore[assignment]  # a tuple's method of that name is not used


@dataclass(frozen=True)
class Usage:
    """Token usage of a job: of its prompt, and of all its results."""

    prompt: int
    picture: int  # image tokens of the prompt
    made: int


@dataclass(eq=False)
class Job:
    """One job for the model, created on the event loop that gets its events.

    `prompt` makes the ids of the codes of `pictures`, which are RGB pictures as the image tokenizer wants them, and for
    an edit those without the instruction too.
    """

    task: str  # text, draw or edit
    prompt: Callable[[Sequence], tuple[list[int], list[int] | None]]
    pictures: Sequence[Image.Image]
    seeds: Sequence[int]  # one per result
    sampling: Sampling
    stop: Sequence[str] = ()  # stop sequences
    stream: bool = False  # stream the text
    raw: bool = False  # keep leading and trailing white space
    logprobs: int | None = None  # log probabilities of each token, and of so many of the likeliest
    echo: bool = False  # of the prompt's tokens too (echo)
    shape: int | None = None  # shape number of the picture; None: the model's choice
    partial: int = 0  # previews per picture
    cancelled: bool = False
    events: asyncio.Queue = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def kind(self) -> tuple:
        """Batching key: the model takes these settings for a whole batch."""
        chosen = self.sampling
        if self.task == "text":
            return ("text",)
        source = chosen.image_guidance if self.task == "edit" else None
        return self.task, chosen.guidance, source, chosen.temperature, chosen.top_k, chosen.top_p

    def emit(self, event: Event) -> None:
        """Send an event to the event loop, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: there is no client
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class JobQueue:
    """Queue of jobs in order of arrival; jobs of one kind are batched. Used from both threads."""

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self.working: list[Job] = []
        self.closed = False
        self.changed = threading.Condition()

    def put(self, job: Job) -> None:
        """Queue a job. Raises ApiError 503 when the queue has been closed."""
        with self.changed:
            if self.closed:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            self.waiting.append(job)
            self.changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a job whose client left: it is not started, and a running one ends at its next token."""
        with self.changed:
            job.cancelled = True
            if job in self.waiting:
                self.waiting.remove(job)

    def take(self, room: int, patience: float = 0.0) -> list[Job]:
        """Wait for the oldest job -> it and all of its kind, in order, up to `room` results; empty once closed.

        Clients of one batch send their next requests at almost the same time. To batch them again, it waits up to
        `patience` seconds for as many results as the last batch had.
        """
        with self.changed:
            expected = min(room, sum(len(job.seeds) for job in self.working))
            self.working = []
            self.changed.wait_for(lambda: self.waiting or self.closed)
            if patience > 0:
                self.changed.wait_for(lambda: self.closed or self._together() >= expected, patience)
            if not self.waiting:
                return []
            first = self.waiting[0]
            for job in list(self.waiting):
                if job is first or (job.kind == first.kind and len(job.seeds) <= room):
                    room -= len(job.seeds)
                    self.waiting.remove(job)
                    self.working.append(job)
            return list(self.working)

    def _together(self) -> int:
        """Number of waiting results that can be batched with the oldest."""
        return sum(len(job.seeds) for job in self.waiting if job.kind == self.waiting[0].kind)

    def close(self, reason: ApiError) -> None:
        """Refuse new jobs, and end unfinished ones with `reason`."""
        with self.changed:
            self.closed = True
            for job in [*self.working, *self.waiting]:
                job.cancelled = True
                job.emit(Event("error", reason))
            self.waiting.clear()
            self.changed.notify_all()
