"""Who comes in: the callers that a server on one's own machine should answer, as many as there is room for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.serving.api_error import ApiError
from tools.serving.limits import Limits


class Gate:
    """ASGI middleware that counts requests to the model and refuses what goes over the limits.

    `inside` is the number of requests being read, waiting or worked on; `draining` that no more may come.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, hosts: Collection[str] | None, last_seconds: Callable[[], float]
    ) -> None:
        """`hosts` are the names that this server may be called by; None for any."""
        self.app, self.limits, self.hosts, self.last_seconds = app, limits, hosts, last_seconds
        self.inside, self.draining = 0, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        posted = scope["method"] == "POST"
        try:
            self.check_caller(headers)
            if posted:
                self.check_room(headers)
        except ApiError as error:
            return await error.response()(scope, receive, send)
        if not posted:
            return await self.app(scope, receive, send)
        self.inside += 1
        try:
            await self.app(scope, self.limited(receive), send)
        finally:
            self.inside -= 1

    def check_caller(self, headers: Headers) -> None:
        """Raises ApiError 403 for pages of other sites, which a browser lets call any address of its own machine."""
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self.hosts is not None and name not in self.hosts:
            raise ApiError(403, f"not a name of this server: {name[:100]!r}: see --allow-host", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, f"requests of pages of {origin[:100]} are not answered", code="wrong_origin")

    def check_room(self, headers: Headers) -> None:
        """Raises ApiError 503, 429 or 413."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=10)
        if self.inside >= self.limits.requests:
            wait = max(1, math.ceil(self.last_seconds()))
            raise ApiError(429, f"{self.inside} requests wait already: try again", code="queue_full", retry_after=wait)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            raise self.too_large()

    def too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self.limits.body_bytes:,} bytes", code="request_too_large")

    def limited(self, receive: Receive) -> Receive:
        """`receive` that raises ApiError 413 or 408 for a body that is too large or takes too long."""
        ends = asyncio.get_running_loop().time() + self.limits.body_seconds
        size, whole = 0, False

        async def receive_within() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(ends):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"the body took over {self.limits.body_seconds:g} s", code="slow_request") from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self.limits.body_bytes:
                raise self.too_large()
            return message

        return receive_within
