"""Whether a multipart form came whole: parsers drop an unfinished last part without a word."""

from __future__ import annotations

from email.message import Message as Headers

from starlette.requests import Request
from starlette.types import Message, Receive

from tools.serving.api_error import ApiError

KEPT = 4096  # bytes of the end of a body: the closing boundary, and what may follow it


class FormEnd:
    """Receives for a request, and keeps the end of its body."""

    def __init__(self, request: Request):
        self._receive: Receive = request.receive
        self._end = b""
        head = Headers()
        head["content-type"] = request.headers.get("content-type", "")
        self._boundary = head.get_boundary() if head.get_content_maintype() == "multipart" else None
        self.request = Request(request.scope, self._take)

    async def _take(self) -> Message:
        message = await self._receive()
        self._end = (self._end + message.get("body", b""))[-KEPT:]
        return message

    def check(self) -> None:
        """Raises ApiError 400 for a multipart form without its closing boundary. Call it when the form has been read."""
        if self._boundary is not None and f"--{self._boundary}--".encode("latin-1", "replace") not in self._end:
            raise ApiError(
                400, "the form ends without its closing boundary, so its last part is not whole: send it again"
            )
