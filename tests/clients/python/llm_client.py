"""The `llm` command: a system prompt, a conversation that goes on, a picture; its settings in a folder of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from steps import KEY, MODEL, PICTURE, URL, WORDS, check_text, run

folder = Path(tempfile.mkdtemp())
environment = {**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": KEY}
(folder / "extra-openai-models.yaml").write_text(
    f"- model_id: here\n  model_name: {MODEL}\n  api_base: {URL}\n  vision: true\n  api_key_name: here\n"
)


def llm(*words):
    command = [str(Path(sys.executable).parent / "llm"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def text():
    check_text(llm("-m", "here", "--no-stream", "-s", "Be brief.", "-o", "max_tokens", "16", WORDS))


def history():
    check_text(llm("-c", "--no-stream", "-o", "max_tokens", "16", "And now?"))


def stream():
    check_text(llm("-m", "here", "-o", "max_tokens", "16", WORDS))


def picture_in():
    check_text(llm("-m", "here", "-a", PICTURE, "-o", "max_tokens", "16", WORDS))


llm("keys", "set", "here", "--value", KEY)
run({"text": text, "history": history, "stream": stream, "picture in": picture_in})
