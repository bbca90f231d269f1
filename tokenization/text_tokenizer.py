"""The base model's text tokenizer, used on text that comes from outside."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and its identity; `sha256` is that of its tokenizer.json."""

    tokenizer: Any
    name: str
    sha256: str
    vocab_size: int

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, uint32 [tokens], with no special token added or recognised.

        A caption that spells `<|vision_start|>` becomes the tokens of those characters, never the control token.
        """
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


def load_text_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer.json of a folder. UserError if there is none or it cannot be read."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; pass --tokenizer the folder of the base model's tokenizer"
        ) from error
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:  # the Rust side raises a bare Exception
        raise UserError(f"{path}: not a tokenizer file ({error}); copy it again from the base model") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # as the characters that spell them
    return TextTokenizer(
        tokenizer=tokenizer,
        name=Path(folder).resolve().name,
        sha256=hashlib.sha256(data).hexdigest(),
        vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
    )
