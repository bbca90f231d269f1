"""A real server that is told to end while clients wait: what it has taken is finished, the rest is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from urllib.error import URLError

import openai
import pytest

from tests.tools.serving_process import serving
from tests.tools.tiny_export import CHATML, write_export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("shutdown") / "tiny", added=CHATML, max_position_embeddings=512)


def draw(seed: int) -> bytes:
    return json.dumps({"prompt": "a cat", "seed": seed}).encode()


def test_what_was_begun_is_finished(commands, folder, tmp_path):
    with serving(commands, folder, tmp_path, "--batch-size", 2) as server:
        expected = [server.post("/v1/images/generations", draw(seed))[1]["data"] for seed in range(6)]
        idle = server.client  # keeps a connection open
        idle.models.list()
        server.brake.touch()
        with ThreadPoolExecutor(7) as pool:
            held = [pool.submit(server.post, "/v1/images/generations", draw(seed)) for seed in range(6)]
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 30, "stream": True}
            stream = server.client.chat.completions.create(**asked)
            server.wait_until(lambda: server.requests() == 7)  # two at work, five waiting
            server.terminate()
            server.wait_until(lambda: server.get("/health")[1]["status"] == "shutting_down")
            status, found, headers = server.post("/v1/images/generations", draw(9))
            assert status == 503 and found["error"]["code"] == "shutting_down" and "Retry-After" in headers
            with pytest.raises(openai.InternalServerError, match="shutting down"):
                idle.images.generate(prompt="x")
            server.brake.unlink()
            assert [one.result()[1]["data"] for one in held] == expected
            assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")
        done = server.wait()
        assert done.code == 0 and done.err.count("Traceback") == 0, done.err
        with pytest.raises(URLError):
            server.get("/health")


@pytest.mark.parametrize("how", ["grace", "second signal"])
def test_what_takes_too_long_gets_an_error(commands, folder, tmp_path, how):
    grace = ("--grace", 0.3) if how == "grace" else ()
    with serving(commands, folder, tmp_path, "--batch-size", 1, *grace) as server:
        server.brake.touch()
        with ThreadPoolExecutor(2) as pool:
            held = [pool.submit(server.post, "/v1/images/generations", draw(seed)) for seed in range(2)]
            server.wait_until(lambda: server.requests() == 2)
            server.terminate()
            if how == "second signal":
                server.wait_until(lambda: server.get("/health")[1]["status"] == "shutting_down")
                server.terminate()
            for one in held:
                status, found, _ = one.result()
                assert status == 503 and "before this was done" in found["error"]["message"]
        assert server.wait().code == 0
