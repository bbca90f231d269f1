"""Admission control: host names, API keys, body sizes, and the number of concurrent requests."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.serving.api_error import ApiError
from tools.serving.limits import Limits
from tools.serving.metrics import ServerMetrics

QUERY = {
    "api-version": None,  # of Azure's clients; there is one version
    "include": None,  # of a stored response: what it names does not occur here
    "include[]": None,
    "include_obfuscation": None,  # padding of events, which this server never adds
    "stream": "false",
}
"""Parameters in addresses that ask for nothing here, and the value with which they do so, None for any."""

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]\\]*)(:\d{0,5})?")


@dataclass(frozen=True)
class Callers:
    """Callers that are served. `hosts` are the host names that the server accepts, None for any; IP addresses always
    are.

    `origins` are allowed origins (CORS), `*` for any. With `keys`, a key is required instead of these checks: a web page
    without one cannot use the server under any name.
    """

    hosts: Collection[str] | None
    origins: Collection[str] = ()
    keys: Sequence[str] = ()

    def check(self, path: str, headers: Headers) -> None:
        """Check host, origin and key. Raises ApiError 400, 401 or 403."""
        host = headers.get("host", "")  # HTTP/1.0 may leave it out; a browser never does
        found = HOST.fullmatch(host)
        if not found:
            raise ApiError(400, f"the Host header {host[:100]!r} is not a name and a port", code="malformed_host")
        if path == "/health":  # for health probes, which come by any name or address
            return
        if self.keys:
            if path.startswith("/v1/") or path in ("/v1", "/metrics"):
                self.check_key(headers.get("authorization", ""))
            return
        name = found[1].lower().rstrip(".")
        if host and self.hosts is not None and name not in self.hosts and not is_address(name):
            raise ApiError(403, f"not a name of this server: {name[:100]!r}: see --allow-host", code="wrong_host")
        origin = headers.get("origin")
        if origin is None or "*" in self.origins or origin.lower() in self.origins:
            return
        if origin.lower().partition("://")[2] != host.lower() or not host:
            message = f"requests of pages of {origin[:100]!r} are not answered: see --allow-origin"
            raise ApiError(403, message, code="wrong_origin")

    def check_key(self, authorization: str) -> None:
        """Raises ApiError 401 unless the header holds one of the keys, compared in constant time."""
        scheme, _, given = authorization.partition(" ")
        sent = given.strip().encode() if scheme.lower() == "bearer" else b""
        right = [hmac.compare_digest(sent, key.encode()) for key in self.keys]
        if not any(right):
            what = "is not one of this server's" if sent else "is missing: send Authorization: Bearer KEY"
            raise ApiError(401, f"the API key {what}", code="invalid_api_key")


def is_address(name: str) -> bool:
    """Whether a host is an IP address: DNS rebinding cannot make a browser send one that is not its own."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def check_query(scope: Scope) -> None:
    """Raises ApiError 400 for a parameter in the address of an endpoint: settings stand in the body."""
    if not scope["path"].startswith("/v1/"):
        return
    for name, value in parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True):
        if name not in QUERY or QUERY[name] not in (None, value.lower()):
            message = f"{name[:100]!r} in the address is not read: leave it out there, and send settings in the body"
            raise ApiError(400, message, name[:100], "unknown_parameter")


class AdmissionControl:
    """ASGI middleware that counts requests to the model and refuses those over the limits.

    `inside` is the number of requests in progress (read, waiting or processed); `draining`: new ones are refused.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, callers: Callers, last_seconds: Callable[[], float], metrics: ServerMetrics
    ) -> None:
        self.app, self.limits, self.callers = app, limits, callers
        self.last_seconds, self.metrics = last_seconds, metrics
        self.inside, self.draining = 0, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.answer(scope, receive, send_and_note)
        finally:
            self.metrics.request(scope["path"], status, time.monotonic() - began)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        posted = scope["method"] == "POST"
        try:
            self.callers.check(scope["path"], headers)
            check_query(scope)
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

    def check_room(self, headers: Headers) -> None:
        """Raises ApiError 503, 429 or 413 for requests over the limits."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=10)
        if (encoding := headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
            message = f"the body has Content-Encoding {encoding[:40]!r}: send it as it is, without compression"
            raise ApiError(400, message, code="unsupported_encoding")
        if self.inside >= self.limits.requests:
            wait = max(1, math.ceil(self.last_seconds()))
            raise ApiError(429, f"{self.inside} requests wait already: try again", code="queue_full", retry_after=wait)
        length = headers.get("content-length", "")
        digits = length if length.isascii() and length.isdecimal() else ""
        if len(digits) > 18 or (digits and int(digits) > self.limits.body_bytes):
            raise self.too_large()

    def too_large(self) -> ApiError:
        return ApiError(413, f"the request is larger than {self.limits.body_bytes:,} bytes", code="request_too_large")

    def limited(self, receive: Receive) -> Receive:
        """`receive` that raises ApiError 413 or 408 for a body that is too large or too slow."""
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
