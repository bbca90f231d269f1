"""A real server process for tests, and a brake for its model: it works only while a test lets it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import openai
from PIL import Image

from tests.commands import CommandServer, Finished, Running


@dataclass(frozen=True)
class Served:
    """A server that is ready. `brake` holds its model while that file exists, at most until the next token."""

    process: Running
    url: str
    model: str
    brake: Path

    @property
    def client(self) -> openai.OpenAI:
        """The official client, which tries nothing twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def post(self, path: str, body: bytes, kind: str = "application/json", **headers: str) -> tuple[int, dict, Message]:
        """Status, body and headers of the answer to a POST request."""
        request = Request(self.url + path, body, {"Content-Type": kind, **headers}, method="POST")
        return self.answer(request)

    def get(self, path: str, **headers: str) -> tuple[int, dict, Message]:
        """The same of a GET request."""
        return self.answer(Request(self.url + path, headers=headers))

    def answer(self, request: Request) -> tuple[int, dict, Message]:
        try:
            with urlopen(request, timeout=300) as response:
                return response.status, json.load(response), response.headers
        except HTTPError as error:
            return error.code, json.load(error), error.headers

    def requests(self) -> int:
        """How many requests the server has in hand."""
        return self.get("/health")[1]["requests"]

    def steps(self) -> int:
        """How many passes the model has made."""
        steps = self.brake.with_name("steps")
        return steps.stat().st_size if steps.exists() else 0

    def wait_until(self, condition) -> None:
        self.process.wait_until(condition, seconds=60)

    def terminate(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    def wait(self) -> Finished:
        return self.process.wait()


@contextmanager
def serving(commands: CommandServer, folder: Path, scratch: Path, *flags: object) -> Iterator[Served]:
    """Start `tools/serve.py` on a free port; it is ended, and must end well, if it is still there afterwards."""
    scratch.mkdir(parents=True, exist_ok=True)
    brake = scratch / "brake"
    hook = ("tests.tools.serving_process", "brake_the_model", str(brake))
    process = commands.start("tools/serve.py", "--model", folder, "--port", 0, *flags, hook=hook)
    process.wait_until(lambda: "ready: " in process.out.read_text())
    url = process.out.read_text().split("ready: ")[1].strip()
    yield Served(process, url, folder.name, brake)
    brake.unlink(missing_ok=True)
    if process.processes():
        os.kill(process.pid, signal.SIGTERM)
        done = process.wait()
        assert done.code == 0 and "Traceback" not in done.err, done.err


def brake_the_model(brake: str) -> None:
    """In the server's process: each pass of the model waits while the file is there, and leaves a byte in `steps`."""
    from pretrain.system.light_imports import leave_torchvision_out

    leave_torchvision_out()
    from model.hf.modeling_uni_x import UniXModel

    forward, path = UniXModel.forward, Path(brake)

    def braked(self, *arguments, **options):
        while path.exists():
            time.sleep(0.005)
        with path.with_name("steps").open("ab") as file:
            file.write(b".")
        return forward(self, *arguments, **options)

    UniXModel.forward = braked


def picture_file(seed: int = 0, size: tuple[int, int] = (30, 20), kind: str = "PNG", **options: object) -> bytes:
    """The file of a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **options)
    return file.getvalue()


def data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def pixels_of(b64_json: str) -> np.ndarray:
    """Pixels [H, W, 3] of a picture in an answer."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))
