"""Errors as the OpenAI API words them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json

from starlette.responses import Response

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
    507: "server_error",
}


class ApiError(Exception):
    """What a client is told instead of an answer. `param` is the field at fault, `code` a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,  # seconds
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict:
        """The JSON object of a response, or of an event of a stream."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The HTTP response. A body that was refused may not have been read to its end, so the connection closes."""
        headers = {"Connection": "close"} if self.status in (401, 403, 408, 413, 429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return json_response(self.body(), self.status, headers)


def json_response(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response in ASCII, so that no text of a client's can fail to be encoded."""
    return Response(json.dumps(content), status, headers, media_type="application/json")
