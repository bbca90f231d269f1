"""An HTTP server in this process that gives out a folder, counts what is asked for, and fails as stores do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier

Fault = Callable[["Request"], bool]


class Request(BaseHTTPRequestHandler):
    """One request; `store` is where it came to, `name` the path in its folder, `number` counts those for the name from 1."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and content are two packets, and each waits for no other
    store: Store

    def do_GET(self) -> None:
        """Answer, or fail as the store is told to."""
        self.name = self.path.lstrip("/")
        with self.store.lock:
            self.store.asked[self.name] += 1
            self.number = self.store.asked[self.name]
        if self.store.fault is not None and self.store.fault(self):
            return
        path = self.store.folder / self.name
        self.answer(path.read_bytes() if path.is_file() else None)

    def answer(self, content: bytes | None, promised: int | None = None, code: int = 200) -> None:
        """Send content under a length that may be another; None: there is no such file."""
        self.send_response(404 if content is None else code)
        self.send_header("Content-Length", str(len(content or b"") if promised is None else promised))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_) -> None:
        """Print nothing."""


class Store:
    """The server. `asked` counts requests by name; `fault(request)` may answer in its place, and then returns True."""

    def __init__(self, folder: Path):
        self.folder, self.asked, self.lock = folder, Counter(), threading.Lock()
        self.fault: Fault | None = None
        handler = type("Handler", (Request,), {"store": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def shards_asked(self, name: str = "") -> list[int]:
        """How often each shard was asked for of those whose path begins so."""
        return [count for path, count in self.asked.items() if path.endswith(".mds") and path.startswith(name)]


@contextmanager
def serving(folder: Path) -> Iterator[Store]:
    """A store that gives out `folder`."""
    store = Store(folder)
    thread = threading.Thread(target=store.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.server.shutdown()
        store.server.server_close()
        thread.join()


def unavailable(request: Request) -> bool:
    """503 to everything."""
    request.answer(b"later", code=503)
    return True


def open_and_verify(url: str, cache: Path, start: Barrier | None = None) -> None:
    """In another process: wait for the others, then fetch and check all there is."""
    from tokenization.shard_cache import Cache
    from tokenization.shards import open_dataset

    if start:
        start.wait()
    open_dataset(url, Cache(cache)).verify()


def short_pauses() -> None:
    """In a process: between tries it waits next to nothing. Loader workers that it starts inherit this."""
    from tokenization import remote

    remote.PAUSES = (0.01, 0.02, 0.03, 0.04)
