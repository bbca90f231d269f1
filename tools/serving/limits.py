"""Limits per client and in total."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the server. Those that have a flag of tools/serve.py are described there."""

    batch_size: int = 8  # batch size
    requests: int = 32  # concurrent requests; one more gets 429
    samples: int = 4  # most pictures of a request
    body_bytes: int = 20 << 20  # of a request
    pixels: int = 16_000_000  # of a picture, of a client's or made for one
    pictures: int = 16  # in a request
    prompts: int = 64  # of a request for completions
    messages: int = 1024  # of a conversation
    prompt_characters: int = 16_000  # all texts of a request together
    max_tokens: int = 512  # of a text answer
    seconds: float = 120.0  # from the end of a request's body to the end of its answer
    body_seconds: float = 30.0  # to send a request's body
    grace_seconds: float = 60.0  # grace period of unfinished requests at shutdown
