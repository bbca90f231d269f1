"""curl over HTTP/1.0, which keeps no connection and knows no chunks."""

import base64
import json
import os
import subprocess

from steps import KEY, MODEL, PICTURE, URL, WORDS, check_png, check_text, data_uri, run


def curl(path, *words):
    command = ["curl", "--http1.0", "--silent", "--show-error", "--fail-with-body", "--max-time", "60", f"{URL}/{path}"]
    command += ["-H", f"Authorization: Bearer {KEY}", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask(messages, **more):
    body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": 16} | more)
    return curl("chat/completions", "-H", "Content-Type: application/json", "-d", body)


hello = {"role": "user", "content": WORDS}


def text():
    check_text(json.loads(ask([hello]))["choices"][0]["message"]["content"])


def history():
    first = json.loads(ask([hello]))["choices"][0]["message"]
    check_text(
        json.loads(ask([hello, first, {"role": "user", "content": "And now?"}]))["choices"][0]["message"]["content"]
    )


def stream():
    lines = [line[6:] for line in ask([hello], stream=True).splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    check_text("".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]))


def picture_in():
    parts = [{"type": "text", "text": WORDS}, {"type": "image_url", "image_url": {"url": data_uri()}}]
    check_text(json.loads(ask([{"role": "user", "content": parts}]))["choices"][0]["message"]["content"])


def draw():
    body = json.dumps({"prompt": "a cat", "size": "512x512", "response_format": "url"})
    url = json.loads(curl("images/generations", "-H", "Content-Type: application/json", "-d", body))["data"][0]["url"]
    done = subprocess.run(["curl", "--http1.0", "--silent", url], capture_output=True)
    check_png(base64.b64encode(done.stdout).decode())


def edit():
    check_png(
        json.loads(curl("images/edits", "-F", f"image=@{PICTURE}", "-F", "prompt=redder", "-F", "n="))["data"][0][
            "b64_json"
        ]
    )


assert os.path.exists(PICTURE)
run({"text": text, "history": history, "stream": stream, "picture in": picture_in, "draw": draw, "edit": edit})
