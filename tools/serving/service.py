"""Shared by all endpoints: the loaded model, its queue, and waiting for answers."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response

from tools.export.folder import Export
from tools.generation.prompts import Sampling, blank_sources, framing_of, most_tokens
from tools.serving.api_error import ApiError
from tools.serving.jobs import Event, Job, JobQueue
from tools.serving.limits import Limits
from tools.serving.pictures import Size, picture_of
from tools.serving.response_store import ResponseStore


class ClientGone(Exception):
    """The client disconnected before its answer was ready."""


@dataclass(frozen=True)
class Service:
    """A model served under `names`. `defaults` are the image settings that a request leaves out."""

    export: Export
    names: Sequence[str]
    queue: JobQueue
    limits: Limits
    defaults: Sampling
    turns: bool  # prompts with turns, as in training on conversations; else captioning and text completion
    skills: Sequence[str] = ("draw", "edit", "caption", "chat")  # skills of the model, for clients that ask
    examples: Sequence[str] = ()  # captions that the page offers to draw
    files: ResponseStore = field(default_factory=lambda: ResponseStore(3600.0, 128 << 20, lambda file: len(file[0])))
    answers: ResponseStore = field(default_factory=lambda: ResponseStore(3600.0, 64 << 20, lambda answer: answer.size))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        """The model's name in answers."""
        return self.names[0]

    @property
    def shapes(self) -> list[Size]:
        """Width and height in pixels of the model's images, the default first."""
        side = self.export.vq.downsample
        return [(columns * side, rows * side) for rows, columns in self.export.templates.grids]

    @property
    def context(self) -> int:
        """The model's context length in tokens."""
        return self.export.model.config.max_position_embeddings

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 for another model's name."""
        if name is not None and name not in self.names:
            raise ApiError(404, f"there is no model {name[:100]!r}, only {self.name!r}", "model", "model_not_found")

    def check_count(self, n: int | None) -> None:
        """Raises ApiError 400 for too many results in one request."""
        if n is not None and n > self.limits.samples:
            raise ApiError(
                400, f"n is {n}, the limit is {self.limits.samples}: ask again for more", "n", "invalid_value"
            )

    def check_words(self, texts: Sequence[str], param: str) -> None:
        """Raises ApiError 400 for texts that are too long, before tokenization."""
        if (length := sum(map(len, texts))) > self.limits.prompt_characters:
            message = f"{param}: {length:,} characters, the limit is {self.limits.prompt_characters:,}"
            raise ApiError(400, message, param, "context_length_exceeded")

    def room(self, job: Job, param: str) -> int:
        """Tokens left in the context after a job's prompt. Raises ApiError 400 if there are none."""
        blank = blank_sources(self.export, len(job.pictures))
        tokens, limit = len(job.prompt(blank)[0]), self.context
        least = 1 if job.task == "text" else most_tokens(self.export)
        if tokens + least > limit:
            message = f"{param}: {tokens} tokens and an answer of {least} are more than the model's {limit}: shorten it"
            raise ApiError(400, message, param, "context_length_exceeded")
        return limit - tokens

    async def squares(self, files: Sequence[bytes], param: str) -> list:
        """Images of files, decoded outside the event loop. Raises ApiError 400."""
        if len(files) > self.limits.pictures:
            raise ApiError(400, f"{param}: {len(files)} pictures, the limit is {self.limits.pictures}", param)
        framing, pixels = framing_of(self.export), self.limits.pixels
        return [await asyncio.to_thread(picture_of, data, framing, pixels, param) for data in files]

    async def events(self, request: Request, job: Job) -> AsyncIterator[Event]:
        """Queue a job and yield its events up to `end`.

        When the client leaves (ClientGone), the time is over (ApiError 504) or the reader stops, the job is cancelled.
        """
        self.queue.put(job)
        watcher = asyncio.create_task(self._watch(request, job))
        ends = asyncio.get_running_loop().time() + self.limits.seconds
        try:
            while True:
                try:
                    async with asyncio.timeout_at(ends):
                        event = await job.events.get()
                except TimeoutError:
                    wait = max(1, math.ceil(self.limits.seconds / 4))
                    message = f"not done after {self.limits.seconds:g} s"
                    raise ApiError(504, message, code="timeout", retry_after=wait) from None
                if event.kind == "error":
                    raise event.value
                if event.kind == "gone":
                    raise ClientGone
                yield event
                if event.kind == "end":
                    return
        finally:
            watcher.cancel()
            self.queue.cancel(job)

    async def _watch(self, request: Request, job: Job) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.queue.cancel(job)
        job.events.put_nowait(Event("gone"))


def draw_seed(seed: int | None) -> int:
    """A request's seed, or a random one; small enough for JavaScript's numbers."""
    return secrets.randbits(48) if seed is None else seed


def event_stream(messages: AsyncIterator[dict], done: bool = True) -> Response:
    """Response of server-sent events; an error becomes the last one. A message with a `type` is named by it.

    `done` ends it with the mark of the older parts of the OpenAI API. A comment every 15 s keeps proxies waiting.
    """

    async def events() -> AsyncIterator[ServerSentEvent]:
        try:
            async for message in messages:
                yield ServerSentEvent(json.dumps(message), event=message.get("type"), sep="\n")
            if done:
                yield ServerSentEvent("[DONE]", sep="\n")
        except ApiError as error:
            yield ServerSentEvent(json.dumps(error.body()), sep="\n")
        except ClientGone:
            pass

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(events(), headers=headers, sep="\n")
