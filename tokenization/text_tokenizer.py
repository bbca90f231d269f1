"""The base model's text tokenizer, for untrusted text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.tokenizer_file import read_tokenizer

if TYPE_CHECKING:
    from model.hf.text_uni_x import TextEncoder


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and its identity; `sha256` is that of its tokenizer.json."""

    encoder: TextEncoder
    name: str
    sha256: str
    vocab_size: int

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, uint32 [tokens]; special tokens are neither added nor recognized.

        A caption that spells `<|vision_start|>` becomes the tokens of those characters, never the control token, whether or
        not the tokenizer marks it as special.
        """
        return [np.array(ids, dtype=np.uint32) for ids in self.encoder.batch(texts)]


def load_text_tokenizer(folder: str | Path) -> TextTokenizer:
    """Load the tokenizer.json of a folder. Raises UserError if it is missing or unreadable."""
    from model.hf.text_uni_x import TextEncoder

    tokenizer, data = read_tokenizer(Path(folder) / "tokenizer.json")
    return TextTokenizer(
        encoder=TextEncoder(data.decode("utf-8")),
        name=Path(folder).resolve().name,
        sha256=hashlib.sha256(data).hexdigest(),
        vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
    )
