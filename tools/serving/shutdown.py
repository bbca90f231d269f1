"""Start and graceful shutdown: at SIGTERM or SIGINT requests in progress are finished, and new ones refused."""

from __future__ import annotations

import errno
import socket
import time

import uvicorn
from starlette.types import ASGIApp

from pretrain.system.errors import UserError
from tools.serving.admission import AdmissionControl
from tools.serving.api_error import ApiError
from tools.serving.jobs import JobQueue


class DrainingServer(uvicorn.Server):
    """Server with draining: during shutdown new requests get 503 until the last old one is done.

    A second signal, or the end of the grace period, ends unfinished requests with an error to their clients.
    """

    def __init__(
        self, config: uvicorn.Config, admission: AdmissionControl, queue: JobQueue, grace: float, address: str
    ) -> None:
        super().__init__(config)
        self.admission, self.queue, self.grace, self.address = admission, queue, grace, address
        self.ends = float("inf")

    def handle_exit(self, sig: int, frame) -> None:
        """Signal handler. uvicorn would close its sockets and end by the same signal; this one ends with exit code
        0."""
        self.ends = 0.0 if self.admission.draining else time.monotonic() + self.grace
        self.admission.draining = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"ready: {self.address}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second -> whether to close the sockets now."""
        if await super().on_tick(counter):
            return True
        if not self.admission.draining:
            return False
        if time.monotonic() > self.ends and not self.queue.closed:
            self.queue.close(ApiError(503, "the server has shut down before this was done", code="shutting_down"))
            return True
        return self.admission.inside == 0


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket, without listening yet. Raises UserError if that fails."""
    if port > 65535:  # getaddrinfo would take what is left of it after division
        raise UserError(f"--port {port}: ports go up to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:  # of a name that cannot be one, too long or with an empty label
        reason = getattr(error, "strerror", None) or error
        other = "--port" if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise UserError(f"--host {host[:100]} --port {port} cannot be used ({reason}): give another {other}") from None
    return bound


def serve(app: ASGIApp, admission: AdmissionControl, queue: JobQueue, bound: socket.socket, grace: float) -> None:
    """Serve on `bound` until a signal comes and requests in progress are finished."""
    host, port = bound.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=5,  # grace period in seconds for slow readers
        h11_max_incomplete_event_size=32 << 10,  # bytes of headers
        http="h11",
        ws="none",
    )
    DrainingServer(config, admission, queue, grace, address).run(sockets=[bound])
