"""Texts, marked-up texts and conversation turns to token ids, as the processor does it. Imports torch and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .sources_uni_x import open_picture, parts_of_messages
from .text_uni_x import TextEncoder

PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"  # stands for an image in marked-up text


class MarkupMixin:
    """Encoding of a processor: plain text has no control tokens, marked-up text has; ChatML turns."""

    if TYPE_CHECKING:  # of the processor that this is mixed into
        tokenizer: Any
        shapes: list[Any]
        size_words: list[list[int]]
        offset: int
        start: int
        end: int
        codes: Any

    _text_encoder: tuple[int, TextEncoder] | None = None

    def ids_of(self, parts: Sequence) -> list[int]:
        """Ids of a user's texts and images in order, each image between its markers."""
        ids: list[int] = []
        for part in parts:
            if isinstance(part, str):
                ids += self.encode(part)
            else:
                codes = self.codes([part])[0]
                size = self.size_words[self.shapes.index(tuple(codes.shape))] if self.shapes else []
                ids += [*size, self.start, *(codes.flatten() + self.offset).tolist(), self.end]
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text; control tokens in it are encoded as characters."""
        if not text:
            return []
        size = len(self.tokenizer)  # a token that was added meanwhile is a control token, too
        if self._text_encoder is None or self._text_encoder[0] != size:
            self._text_encoder = size, TextEncoder(self.tokenizer.backend_tokenizer.to_str())
        return self._text_encoder[1](text)

    def _markup(self, text: str) -> list[int]:
        """Ids of marked-up text, with control tokens. Raises ValueError for a token whose id is an image token's."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        wrong = [token for token in ids if token >= self.offset]
        if wrong:
            raise ValueError(
                f"token {self.tokenizer.convert_ids_to_tokens(wrong[0])!r} has id {wrong[0]}, and from {self.offset} on ids are "
                "picture codes: this tokenizer has no room for added tokens"
            )
        return ids

    def _marked_up(self, text: str, pictures: Sequence, plain: bool = False) -> list[int]:
        """Ids of marked-up text, with `pictures` at their placeholders, or before it without placeholders."""
        encode = self.encode if plain else self._markup
        pictures = [open_picture(one) for one in pictures]
        pieces = text.split(PLACEHOLDER) if not plain else [text]
        if len(pieces) == 1:
            return [*self.ids_of(pictures), *encode(text)]
        if len(pieces) - 1 != len(pictures):
            raise ValueError(
                f"the text has places for {len(pieces) - 1} pictures, and {len(pictures)} are given: one for each"
            )
        ids = encode(pieces[0])
        for picture, piece in zip(pictures, pieces[1:], strict=True):
            ids += [*self.ids_of([picture]), *encode(piece)]
        return ids

    def _turns(
        self, messages: Sequence[dict], add_generation_prompt: bool, continue_final_message: bool
    ) -> tuple[list[int], list[int]]:
        """Ids of a conversation, and a mask with 1 for assistant tokens."""
        ids: list[int] = []
        mask: list[int] = []
        for place, message in enumerate(messages):
            opening, ending, between = self._turn_marks(message["role"])
            content = self.ids_of(parts_of_messages([message]))
            if continue_final_message and place == len(messages) - 1:
                ending, between = [], []
            spoken = int(message["role"] == "assistant")
            ids += [*opening, *content, *ending, *between]
            mask += [0] * len(opening) + [spoken] * (len(content) + len(ending)) + [0] * len(between)
        if add_generation_prompt:
            ids += self._turn_marks("assistant")[0]
        return ids, mask + [0] * (len(ids) - len(mask))

    def _turn_marks(self, role: str) -> tuple[list[int], list[int], list[int]]:
        """Ids that open a turn, that end it, and that follow it."""
        if not role.isidentifier():  # a role stands among control tokens
            raise ValueError(f"role {role!r} is not one: give user, assistant or system")
        return self._markup(f"<|im_start|>{role}\n"), self._markup("<|im_end|>"), self._markup("\n")

    def _turn(self, role: str, content: Sequence[int]) -> list[int]:
        opening, ending, between = self._turn_marks(role)
        return [*opening, *content, *ending, *between]
