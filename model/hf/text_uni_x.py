"""Text encoding without control tokens, for untrusted text. Travels inside exported checkpoints: imports tokenizers
only.

Training, the processor of an export and the server encode text with this one class, so their ids are equal. What
tokenizers 0.22.2 and 0.23.3 offer for it hides tokens that are marked `special` and no others, forgets to when it is
copied or pickled, and does not hold for marks that stand in the model's own vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

MARK = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)


def is_control(content: str, special: bool) -> bool:
    """Whether an added token is a control token: it is marked so, or looks like one, as `<tool_call>` and `[INST]`.

    Others are words that somebody added to the vocabulary, and text like any other.
    """
    return special or MARK.fullmatch(content.strip()) is not None


class TextEncoder:
    """Encodes text with the tokenizer of a tokenizer.json; control tokens in the text become the characters that spell
    them.

    Raises what tokenizers raises for a content that is no tokenizer.
    """

    def __init__(self, tokenizer_json: str) -> None:
        values = json.loads(tokenizer_json)
        unknown = values["model"].get("unk_token")
        self.marks: dict[int, str] = {}
        marked = []
        for token in values["added_tokens"]:
            if is_control(token["content"], token["special"]):
                token["special"] = True
                marked.append(token["content"])
        values["truncation"] = values["padding"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(values, ensure_ascii=False))
        self._tokenizer.encode_special_tokens = True
        for content in marked:
            if content != unknown:  # the unknown token: it may appear in any text
                self.marks[self._tokenizer.token_to_id(content)] = content

    def __call__(self, text: str) -> list[int]:
        """Ids of one text."""
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        if not self._tokenizer.encode_special_tokens:  # set here, since copies and pickles lose it
            self._tokenizer.encode_special_tokens = True  # only if needed: tokenizers raises while other threads encode
        found = [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]
        return [
            ids if self.marks.keys().isdisjoint(ids) else self._spelled(text)
            for text, ids in zip(texts, found, strict=True)
        ]

    def _spelled(self, text: str) -> list[int]:
        """Ids of a text with a control token that is in the model's own vocabulary: the text is split after each one's
        first character.

        Raises ValueError where a single character is a control token.
        """
        pattern = "|".join(
            f"(?<={re.escape(mark[0])})(?={re.escape(mark[1:])})" for mark in self.marks.values() if mark[1:]
        )
        pieces = [piece for piece in re.split(pattern, text) if piece] if pattern else [text]
        found = [encoding.ids for encoding in self._tokenizer.encode_batch(pieces, add_special_tokens=False)]
        if any(not self.marks.keys().isdisjoint(ids) for ids in found):
            found = [encoding.ids for encoding in self._tokenizer.encode_batch(list(text), add_special_tokens=False)]
        ids = [token for piece in found for token in piece]
        for token in ids:
            if token in self.marks:
                raise ValueError(
                    f"the tokenizer makes its control token {self.marks[token]!r} of plain text: {text[:40]!r}"
                )
        return ids
