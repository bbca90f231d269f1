"""What the endpoints share: the opened model, its queue, and how an answer is awaited."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tools.export_folder import Export
from tools.generation import Sampling, source_codes
from tools.serving.api_error import ApiError
from tools.serving.jobs import Event, Job, JobQueue
from tools.serving.limits import Limits
from tools.serving.pictures import square_of


class ClientGone(Exception):
    """The client left before its answer was ready."""


@dataclass(frozen=True)
class Service:
    """One model that is served under `name`. `defaults` are the settings of pictures that a request leaves out."""

    export: Export
    name: str
    queue: JobQueue
    limits: Limits
    defaults: Sampling
    turns: bool  # conversations are turns, as in training on conversations; else a bare caption prompt or text
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT of the pictures that the model draws."""
        rows, columns = self.export.templates.grid
        side = self.export.vq.downsample
        return f"{columns * side}x{rows * side}"

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 for another model than this one."""
        if name not in (None, self.name):
            raise ApiError(404, f"there is no model {name[:100]!r}, only {self.name!r}", "model", "model_not_found")

    def check_words(self, texts: Sequence[str], param: str) -> None:
        """Raises ApiError 400 for texts that are too long to be looked at, before any is turned into ids."""
        if (length := sum(map(len, texts))) > self.limits.prompt_characters:
            message = f"{param}: {length:,} characters, the limit is {self.limits.prompt_characters:,}"
            raise ApiError(400, message, param, "context_length_exceeded")

    def room(self, job: Job, param: str) -> int:
        """Tokens that the model has left after a job's prompt. Raises ApiError 400 if there are none."""
        blank = [[0] * source_codes(self.export)] * len(job.pictures)
        tokens, limit = len(job.prompt(blank)[0]), self.export.model.config.max_position_embeddings
        least = 1 if job.task == "text" else self.export.templates.grid[0] * self.export.templates.grid[1]
        if tokens + least > limit:
            message = f"{param}: {tokens} tokens and an answer of {least} are more than the model's {limit}: shorten it"
            raise ApiError(400, message, param, "context_length_exceeded")
        return limit - tokens

    async def squares(self, files: Sequence[bytes], param: str) -> list:
        """Pictures of files, decoded outside the event loop. Raises ApiError 400."""
        if len(files) > self.limits.pictures:
            raise ApiError(400, f"{param}: {len(files)} pictures, the limit is {self.limits.pictures}", param)
        size, pixels = self.export.vq.image_size, self.limits.pixels
        return [await asyncio.to_thread(square_of, data, size, pixels, param) for data in files]

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
                    raise ApiError(504, f"not done after {self.limits.seconds:g} s", code="timeout") from None
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
    """A request's seed, or one by chance; small enough for JavaScript's numbers."""
    return secrets.randbits(48) if seed is None else seed


def event_stream(messages: AsyncIterator[str]) -> Response:
    """A response of server-sent events; an error becomes the last one."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for message in messages:
                yield message
        except ApiError as error:
            yield f"data: {json.dumps(error.body())}\n\n"
        except ClientGone:
            pass

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), headers=headers, media_type="text/event-stream")
