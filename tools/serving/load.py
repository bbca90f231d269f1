"""Load-test clients, which compare a server's answers with what the model makes alone."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

import numpy as np
import openai

from tokenization.preprocess import preprocess
from tools.export.folder import Export
from tools.generation.batches import draw_batch, write_batch
from tools.generation.prompts import Request, Sampling, framing_of, prompt_ids, sample_seed, source_codes
from tools.serving.pictures import file_of

WORDS = ("red heart", "pizza", "sun behind a cloud", "green apple", "house", "smiling face", "cat", "blue square")
MALFORMED = (b"{", b'{"prompt": 1}', b'{"prompt": "x", "size": "small"}', b'{"prompt": "x", "n": 1000}')


@dataclass(frozen=True)
class Task:
    """One request of the pool: its text, its seed, its source image, and the model's own result."""

    kind: str  # draw, edit or chat
    prompt: str
    seed: int
    source: bytes
    expected: Any  # pixels [H, W, 3] of a picture, or a text


def make_pool(export: Export, distinct: int) -> list[Task]:
    """`distinct` tasks of each kind. Sources of edits and captions are generated images."""
    pool = []
    sampling = Sampling(4.0, 0.99, 4096, 0.96, 0)
    texts = Sampling(4.0, 1.0, 0, 1.0, 0, text_temperature=1.0, max_new_tokens=32)
    for number in range(distinct):
        words, seeds = f"{WORDS[number % len(WORDS)]} {number}", [sample_seed(number, 0, 0)]
        ids, _ = prompt_ids(export, "draw", Request(words), [])
        picture = draw_batch(export, [ids], seeds, sampling)[0]
        source = file_of(picture, picture.size)
        pool.append(Task("draw", words, number, source, np.asarray(picture)))
        codes = [source_codes(export, preprocess(picture, framing_of(export)))]
        ids, image_only = prompt_ids(export, "edit", Request(words), codes)
        edited = draw_batch(export, [ids], seeds, sampling, [image_only or []])[0]
        pool.append(Task("edit", words, number, source, np.asarray(edited)))
        ids, _ = prompt_ids(export, "caption", Request(words), codes)
        pool.append(Task("chat", words, number, source, write_batch(export, [ids], seeds, texts)[0]))
    return pool


class Load:
    """Clients of one server. `wrong` are wrong answers and failed requests."""

    def __init__(self, url: str, pool: list[Task], clients: int) -> None:
        self.url, self.pool, self.clients = url, pool, clients
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.wrong: list[str] = []
        self.forget()
        with urlopen(f"{url}/v1/models") as response:
            self.model = json.load(response)["data"][0]["id"]

    def forget(self) -> None:
        """Reset the counters, but not wrong answers."""
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.measured: dict[str, list[float]] = self.seconds
        self.refused = self.left = 0

    def run(self, seconds: float) -> None:
        """Let all clients send requests, one after the other, for so long."""
        self.over.clear()
        threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.over.set()
        for thread in threads:
            thread.join()
        self.measured = {kind: list(found) for kind, found in self.seconds.items()}

    def once(self, number: int) -> None:
        """One request of one client, which waits for its answer."""
        self._checked(self._client(), self.pool[number % len(self.pool)], stream=False)

    def in_hand(self) -> int:
        """Requests in progress on the server."""
        with urlopen(f"{self.url}/health") as response:
            return json.load(response)["requests"]

    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def _ask_on(self, number: int) -> None:
        chance, client = random.Random(number), self._client()
        while not self.over.is_set():
            task, choice = chance.choice(self.pool), chance.random()
            if choice < 0.05:
                self._malformed(client, chance.choice(MALFORMED))
            elif choice < 0.1:
                self._leaving(client, task)
            else:
                self._checked(client, task, stream=choice < 0.5)

    def _checked(self, client: openai.OpenAI, task: Task, stream: bool) -> None:
        began = time.monotonic()
        try:
            found = ASK[task.kind](client, self.model, task, stream)
        except openai.OpenAIError as error:
            self._count_wrong(f"{task.kind} {task.prompt!r}: {error}")
            return
        with self.lock:
            self.seconds[task.kind].append(time.monotonic() - began)
        if not np.array_equal(found, task.expected):
            self._count_wrong(f"{task.kind} {task.prompt!r}, seed {task.seed}: not what the model makes alone")

    def _malformed(self, client: openai.OpenAI, body: bytes) -> None:
        try:
            headers = {"Content-Type": "application/json"}
            client.post("/images/generations", content=body, options={"headers": headers}, cast_to=object)
            self._count_wrong(f"{body!r} was answered")
        except openai.BadRequestError:
            with self.lock:
                self.refused += 1
        except openai.OpenAIError as error:
            self._count_wrong(f"{body!r}: {error}")

    def _leaving(self, client: openai.OpenAI, task: Task) -> None:
        try:
            answer = client.images.generate(prompt=task.prompt, stream=True, partial_images=8)
            next(iter(answer))
            answer.close()
        except openai.OpenAIError as error:
            self._count_wrong(f"leaving {task.prompt!r}: {error}")
        with self.lock:
            self.left += 1

    def _count_wrong(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)


def _draw(client: openai.OpenAI, model: str, task: Task, stream: bool) -> np.ndarray:
    own = {"seed": task.seed}
    return _pixels(client.images.generate(prompt=task.prompt, stream=stream, extra_body=own), stream)


def _edit(client: openai.OpenAI, model: str, task: Task, stream: bool) -> np.ndarray:
    own, file = {"seed": task.seed}, ("source.png", task.source)
    return _pixels(client.images.edit(image=file, prompt=task.prompt, stream=stream, extra_body=own), stream)


def _chat(client: openai.OpenAI, model: str, task: Task, stream: bool) -> str:
    uri = f"data:image/png;base64,{base64.b64encode(task.source).decode()}"
    content: list[Any] = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": task.prompt}]
    answer: Any = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], max_tokens=32, seed=task.seed, stream=stream
    )
    if stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    return answer.choices[0].message.content


def _pixels(answer: Any, stream: bool) -> np.ndarray:
    from PIL import Image

    encoded = list(answer)[-1].b64_json if stream else answer.data[0].b64_json
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


ASK: dict[str, Callable] = {"draw": _draw, "edit": _edit, "chat": _chat}
