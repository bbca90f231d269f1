"""Errors in the format of the OpenAI API: a status and {"error": {"message", "type", "param", "code"}}."""

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
    """Error response to a client. `param` is the field at fault, `code` a word for programs."""

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
        """JSON object of a response, or of an event of a stream."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """HTTP response. A refused body may be unread, so the connection closes."""
        headers = {"Connection": "close"} if self.status in (401, 403, 408, 413, 429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return json_response(self.body(), self.status, headers)


def json_response(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON response in ASCII, so that any text can be encoded."""
    return Response(json.dumps(content), status, headers, media_type="application/json")
