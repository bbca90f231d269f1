"""The official clients, Python and npm, do what their quick-starts do; `make test-clients` tries many more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.serving_process import picture_file, serving
from tests.tools.tiny_export import CHATML, write_export

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
OLD = CLIENTS.parents[1] / ".clients/openai1/bin/python"
COMMANDS = {
    "the pinned client": [sys.executable, "python/openai_client.py"],
    "version 1": [str(OLD), "python/openai_client.py"],
    "npm": ["node", "npm/openai.mjs"],
    "curl over HTTP/1.0": [sys.executable, "python/curl_client.py"],
}
NO_TEXT = ("AssertionError: ''", 'no text: ""')  # of steps.py and steps.mjs
NEEDED = {"version 1": OLD, "npm": CLIENTS / "npm/node_modules/openai"}


@pytest.fixture(scope="module")
def settings(commands, tmp_path_factory):
    folder = write_export(tmp_path_factory.mktemp("clients") / "tiny", added=CHATML, max_position_embeddings=1024)
    picture = folder.parent / "picture.png"
    picture.write_bytes(picture_file())
    with serving(commands, folder, tmp_path_factory.mktemp("served"), "--api-key", "secret") as server:
        yield {
            **os.environ,
            "SERVER_URL": f"{server.url}/v1",
            "SERVER_KEY": "secret",
            "SERVER_MODEL": "tiny",
            "PICTURE": str(picture),
        }


def test_the_model_for_the_clients_is_written_without_a_word(tmp_path):
    """Not even DeepSpeed's, which transformers imports as it saves a model."""
    code = "import sys, pathlib; from tests.clients.run import Server; Server(pathlib.Path(sys.argv[1])).export()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "server")],
        cwd=CLIENTS.parents[1],
        env={key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "server/tiny/config.json").is_file() and "accelerator" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_official_clients_do_what_they_do_first(settings, name):
    missing = [
        what for what in (NEEDED.get(name), shutil.which(COMMANDS[name][0])) if not (what and Path(what).exists())
    ]
    if name in NEEDED and missing:
        reason = f"{name} is not installed: make setup-clients"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # A model of random weights ends a text at once, now and then; a client that gets no text fails each time.
    for _ in range(3):
        done = subprocess.run(COMMANDS[name], env=settings, cwd=CLIENTS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        if not any(value.endswith(NO_TEXT) for value in found.values()):
            break
    assert set(found) >= {"text", "history", "stream", "picture in", "draw", "edit"}
    assert set(found.values()) == {"yes"}, (found, done.stderr)
