"""How a picture or a caption is asked for, in ids: the wordings that training and generation share.

A prompt is encoded piece by piece (what stands before the caption, the caption, what stands after it), never as one
string, because code shards hold captions as ids already: so both sides make the same ids from the same caption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from model.errors import UserError
from model.vocabulary import Vocabulary

Encode = Callable[[str], Sequence[int]]  # text -> ids, with no special tokens added; cache it when rows are many

CAPTION = "{caption}"

TURN_START, TURN_END, BETWEEN_TURNS = "<|im_start|>{role}\n", "<|im_end|>", "\n"
"""Qwen's format of a turn."""


@dataclass(frozen=True)
class PromptTemplates:
    """The wordings of one model, and the picture size it was trained for. Written as `unix_prompts.json`.

    Each wording of `text_to_image` holds `{caption}` once. `grid` is (rows, columns) of codes of one picture.
    `vq_fingerprint` names the image tokenizer whose codes the model knows, as in the manifest of its code shards; empty
    when not known. The first wording of each task is the default.
    """

    text_to_image: tuple[str, ...]
    image_to_text: tuple[str, ...]
    unconditional: str = "<unconditional>"
    grid: tuple[int, int] = (8, 8)
    vq_fingerprint: str = ""

    def __post_init__(self) -> None:
        for field in ("text_to_image", "image_to_text"):
            wordings = getattr(self, field)
            if not isinstance(wordings, list | tuple) or not all(isinstance(text, str) for text in wordings):
                raise UserError(f"prompt templates: {field} is {wordings!r}: give a list of strings")
            if not wordings:
                raise UserError(f"prompt templates: {field} is empty: give at least one wording")
            object.__setattr__(self, field, tuple(wordings))
        for text in self.text_to_image:
            if text.count(CAPTION) != 1:
                raise UserError(f"prompt templates: text_to_image {text!r} must hold {CAPTION} exactly once")
        for field in ("unconditional", "vq_fingerprint"):
            if not isinstance(getattr(self, field), str):
                raise UserError(f"prompt templates: {field} is {getattr(self, field)!r}: give a string")
        grid = self.grid
        if not isinstance(grid, list | tuple) or len(grid) != 2 or any(type(n) is not int or n < 1 for n in grid):
            raise UserError(f"prompt templates: grid is {grid!r}: give [rows, columns], both at least 1")
        object.__setattr__(self, "grid", tuple(grid))

    def to_json(self) -> str:
        """The content of `unix_prompts.json`."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "unix_prompts.json") -> PromptTemplates:
        """Read what `to_json` wrote. Raises UserError, which names `source`, for anything else."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{source}: not JSON ({error}): export the model again") from None
        if not isinstance(values, dict):
            raise UserError(f"{source}: holds a {type(values).__name__}, not an object: export the model again")
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        missing = sorted({"text_to_image", "image_to_text", "unconditional", "grid"} - set(values))
        if unknown or missing:
            raise UserError(f"{source}: unknown keys {unknown}, missing keys {missing}: export the model again")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None


DEFAULT_TEMPLATES = PromptTemplates(
    text_to_image=(
        "{caption} Generate an image based on this description.",
        "Draw the following: {caption}.",
        "{caption} Show this as a picture.",
        "Please paint what this text describes: {caption}",
    ),
    image_to_text=(
        "The caption of this image is:",
        "In words, this picture shows:",
        "A short description of the image:",
        "What can be seen here is:",
    ),
)


def text_to_image_ids(
    caption: str | Iterable[int], encode: Encode, vocabulary: Vocabulary, templates: PromptTemplates, wording: int = 0
) -> list[int]:
    """Ids of a prompt whose continuation is a picture: the wording around the caption, then `<|vision_start|>`.

    `caption` is text or, where it was encoded before, its ids; both give the same prompt.
    """
    before, after = templates.text_to_image[wording].split(CAPTION)
    ids = encode(caption) if isinstance(caption, str) else caption
    return [*_encode(before, encode), *map(int, ids), *_encode(after, encode), vocabulary.vision_start_id]


def image_to_text_ids(
    codes: Iterable[int],
    encode: Encode,
    vocabulary: Vocabulary,
    templates: PromptTemplates,
    wording: int | str = 0,
) -> list[int]:
    """Ids of a prompt whose continuation is text: the picture between its markers, then the wording.

    `codes` are codebook indices in row-major order. `wording` is an index, or text to use in its place (a question).
    """
    text = wording if isinstance(wording, str) else templates.image_to_text[wording]
    return [*picture_ids(codes, vocabulary), *_encode(text, encode)]


def turn_ids(
    pictures: Iterable[Iterable[int]], text: str, encode: Encode, markup: Encode, vocabulary: Vocabulary
) -> list[int]:
    """Ids of a user's turn and the opening of the assistant's: the pictures' codes, each between markers, then text."""
    return conversation_ids([("user", [*pictures, text])], encode, markup, vocabulary)


def conversation_ids(
    turns: Iterable[tuple[str, Iterable[str | Iterable[int]]]], encode: Encode, markup: Encode, vocabulary: Vocabulary
) -> list[int]:
    """Ids of turns, each (role, parts), and the opening of the assistant's; a part is a text or a picture's codes.

    `markup` encodes Qwen's marks of turns as the control tokens that they are; `encode` never makes a control token. A
    tokenizer without these tokens spells them out in letters, in training too.
    """
    ids = []
    for role, parts in turns:
        if not role.isidentifier():  # it stands among control tokens
            raise UserError(f"role {role!r} is not one: give user, assistant or system")
        ids += _encode(TURN_START.format(role=role), markup)
        for part in parts:
            ids += _encode(part, encode) if isinstance(part, str) else picture_ids(part, vocabulary)
        ids += [*_encode(TURN_END, markup), *_encode(BETWEEN_TURNS, markup)]
    return [*ids, *_encode(TURN_START.format(role="assistant"), markup)]


def edit_ids(
    sources: Iterable[Iterable[int]], instruction: str, encode: Encode, markup: Encode, vocabulary: Vocabulary
) -> tuple[list[int], list[int]]:
    """Ids of a prompt whose continuation is an edited picture, and of the same prompt without the instruction.

    `sources` are the codes of the source pictures, row-major. The instruction and then they are a user's turn, as in
    training, and the answer opens with `<|vision_start|>`: a code of the source is equally far from that of the target
    whatever the instruction. Guidance for the source picture needs the second list.
    """
    pictures = [list(codes) for codes in sources]
    whole, without = (conversation_ids([("user", [text, *pictures])], encode, markup, vocabulary) for text in (instruction, ""))
    return [*whole, vocabulary.vision_start_id], [*without, vocabulary.vision_start_id]


def unconditional_ids(encode: Encode, vocabulary: Vocabulary, templates: PromptTemplates) -> list[int]:
    """Ids of the prompt of classifier-free guidance's second half, which stands for "any picture"."""
    return [*_encode(templates.unconditional, encode), vocabulary.vision_start_id]


def picture_ids(codes: Iterable[int], vocabulary: Vocabulary) -> list[int]:
    """A picture as it stands in a document: `<|vision_start|>`, one id a code, `<|vision_end|>`."""
    offset = vocabulary.image_token_offset
    return [vocabulary.vision_start_id, *(offset + int(code) for code in codes), vocabulary.vision_end_id]


def _encode(text: str, encode: Encode) -> list[int]:
    return [int(token) for token in encode(text)] if text else []
