"""Simulated remote storage for benchmarks: a local HTTP server in its own process, with realistic latency."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

CHUNK = 1 << 18  # bytes that are sent at a time


@contextmanager
def serving(folders: Sequence[str], latency: float, rate: float) -> Iterator[list[str]]:
    """URLs of these folders while the block runs.

    latency: seconds before every answer; rate: MB/s of each of them (0: as fast as can be).
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=([str(Path(folder).absolute()) for folder in folders], latency, rate, theirs), daemon=True
    )
    process.start()
    try:
        port = ours.recv()
        yield [f"http://127.0.0.1:{port}/{number}" for number in range(len(folders))]
    finally:
        process.kill()
        process.join()


def serve(folders: list[str], latency: float, rate: float, pipe: Connection) -> None:
    """Server process: report the port, and answer until it is ended."""

    class Handler(BaseHTTPRequestHandler):
        """Serves PATH of folder N as /N/PATH."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            number, _, name = self.path.lstrip("/").partition("/")
            path = Path(folders[int(number)], name)
            content = path.read_bytes() if path.is_file() else b""
            time.sleep(latency)
            self.send_response(200 if path.is_file() else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            began = time.monotonic()
            for start in range(0, len(content), CHUNK):
                self.wfile.write(content[start : start + CHUNK])
                if rate:
                    sent = min(start + CHUNK, len(content))
                    time.sleep(max(0.0, began + sent / (rate * 1e6) - time.monotonic()))

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    pipe.send(server.server_address[1])
    server.serve_forever()
