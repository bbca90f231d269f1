"""Prompts in token ids: the templates that training and generation share.

A prompt is encoded piece by piece (what stands before the caption, the caption, what stands after it), never as one
string, because code shards hold captions as ids already: so both sides make the same ids from the same caption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.shapes import FITS, MOST_SHAPES, Grid, size_word
from model.vocabulary import Vocabulary
from pretrain.system.errors import UserError

Encode = Callable[[str], Sequence[int]]  # text -> ids without special tokens; cache it for many rows

CAPTION = "{caption}"

TURN_START, TURN_END, BETWEEN_TURNS = "<|im_start|>{role}\n", "<|im_end|>", "\n"
"""Qwen's format of a turn."""


@dataclass(frozen=True)
class PromptTemplates:
    """Prompt templates of one model, and the image size it was trained for. Written as `unix_prompts.json`.

    Each wording of `text_to_image` holds `{caption}` once. `grid` is (rows, columns) of codes of one picture.
    `vq_fingerprint` names the image tokenizer whose codes the model knows, as in the manifest of its code shards; empty
    when not known. The first wording of each task is the default.

    `shapes` are the grids that pictures may have, `grid` first; then the size words of each stand before its
    `<|vision_start|>`. Empty for a model of squares, which knows no size words. `fit`, one of FITS, says how pictures of other
    shapes are brought to these.
    """

    text_to_image: tuple[str, ...]
    image_to_text: tuple[str, ...]
    unconditional: str = "<unconditional>"
    grid: tuple[int, int] = (8, 8)
    vq_fingerprint: str = ""
    shapes: tuple[Grid, ...] = ()
    fit: str = "crop"

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
        self._check_shapes()

    def _check_shapes(self) -> None:
        shapes = self.shapes
        if not isinstance(shapes, list | tuple) or not all(
            isinstance(shape, list | tuple) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
            for shape in shapes
        ):
            raise UserError(f"prompt templates: shapes is {shapes!r}: give a list of [rows, columns], both at least 1")
        shapes = tuple((rows, columns) for rows, columns in shapes)
        if shapes and (shapes[0] != self.grid or not 2 <= len(shapes) <= MOST_SHAPES or len(set(shapes)) < len(shapes)):
            raise UserError(
                f"prompt templates: shapes is {shapes!r}: give 2 to {MOST_SHAPES} different ones, the grid {self.grid} first"
            )
        object.__setattr__(self, "shapes", shapes)
        if self.fit not in FITS:
            raise UserError(f"prompt templates: fit is {self.fit!r}: give {' or '.join(FITS)}")

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Grids that an image may have."""
        return self.shapes or (self.grid,)

    def to_json(self) -> str:
        """Content of `unix_prompts.json`; for center-cropped square images in the former, shorter form."""
        values = asdict(self)
        for name, usual in (("shapes", ()), ("fit", "crop")):
            if values[name] == usual:
                del values[name]
        return json.dumps(values, ensure_ascii=False, indent=2) + "\n"

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
    """Ids of a text-to-image prompt: the template with the caption, then `<|vision_start|>`.

    A model of several shapes says size words before that: the prompt ends before them (`opening`). `caption` is text
    or, where it was encoded before, its ids; both give the same prompt.
    """
    before, after = templates.text_to_image[wording].split(CAPTION)
    ids = encode(caption) if isinstance(caption, str) else caption
    return [*_encode(before, encode), *map(int, ids), *_encode(after, encode), *opening(vocabulary, templates)]


def image_to_text_ids(
    codes: Iterable[int],
    encode: Encode,
    vocabulary: Vocabulary,
    templates: PromptTemplates,
    wording: int | str = 0,
) -> list[int]:
    """Ids of an image-to-text prompt: the image between its markers, then the template.

    `codes` are as for `picture_ids`. `wording` is an index, or text to use in its place (a question).
    """
    text = wording if isinstance(wording, str) else templates.image_to_text[wording]
    return [*picture_ids(codes, vocabulary, encode, templates), *_encode(text, encode)]


def turn_ids(
    pictures: Iterable[Iterable[int]],
    text: str,
    encode: Encode,
    markup: Encode,
    vocabulary: Vocabulary,
    templates: PromptTemplates = DEFAULT_TEMPLATES,
) -> list[int]:
    """Ids of a user's turn and the start of the assistant's: the images' codes, each between markers, then text."""
    return conversation_ids([("user", [*pictures, text])], encode, markup, vocabulary, templates)


def conversation_ids(
    turns: Iterable[tuple[str, Iterable[str | Iterable[int]]]],
    encode: Encode,
    markup: Encode,
    vocabulary: Vocabulary,
    templates: PromptTemplates = DEFAULT_TEMPLATES,
) -> list[int]:
    """Ids of turns, each (role, parts), and the start of the assistant's; a part is a text or an image's codes.

    `markup` encodes Qwen's marks of turns as the control tokens that they are; `encode` never makes a control token. A
    tokenizer without these tokens spells them out in letters, in training too.
    """
    ids = []
    for role, parts in turns:
        if not role.isidentifier():  # a role is inserted between control tokens
            raise UserError(f"role {role!r} is not one: give user, assistant or system")
        ids += _encode(TURN_START.format(role=role), markup)
        for part in parts:
            ids += _encode(part, encode) if isinstance(part, str) else picture_ids(part, vocabulary, encode, templates)
        ids += [*_encode(TURN_END, markup), *_encode(BETWEEN_TURNS, markup)]
    return [*ids, *_encode(TURN_START.format(role="assistant"), markup)]


def edit_ids(
    sources: Iterable[Iterable[int]],
    instruction: str,
    encode: Encode,
    markup: Encode,
    vocabulary: Vocabulary,
    templates: PromptTemplates = DEFAULT_TEMPLATES,
) -> tuple[list[int], list[int]]:
    """Ids of an image-editing prompt, and of the same prompt without the instruction.

    `sources` are the codes of the source pictures, as for `picture_ids`. The instruction and then they are a user's turn, as in
    training, and the answer opens with `<|vision_start|>` (`opening`): a code of the source is equally far from that of the target
    whatever the instruction. Guidance for the source picture needs the second list.
    """
    pictures, start = list(sources), opening(vocabulary, templates)
    whole, without = (
        conversation_ids([("user", [text, *pictures])], encode, markup, vocabulary, templates)
        for text in (instruction, "")
    )
    return [*whole, *start], [*without, *start]


def unconditional_ids(encode: Encode, vocabulary: Vocabulary, templates: PromptTemplates) -> list[int]:
    """Ids of the unconditional prompt of classifier-free guidance."""
    return [*_encode(templates.unconditional, encode), *opening(vocabulary, templates)]


def opening(vocabulary: Vocabulary, templates: PromptTemplates) -> list[int]:
    """End of a text-to-image prompt: `<|vision_start|>`; empty where size words come first."""
    return [] if templates.shapes else [vocabulary.vision_start_id]


def size_ids(shape: int, encode: Encode, templates: PromptTemplates) -> list[int]:
    """Ids of the size words of a shape, by its number; none for square images."""
    return _encode(size_word(templates.shapes[shape]), encode) if templates.shapes else []


def picture_ids(
    codes: Any,
    vocabulary: Vocabulary,
    encode: Encode | None = None,
    templates: PromptTemplates = DEFAULT_TEMPLATES,
) -> list[int]:
    """Ids of an image in a document: its size words if any, `<|vision_start|>`, one id per code, `<|vision_end|>`.

    `codes` are codebook indices in row-major order; an array [rows, columns] of them, and `encode`, where the templates have
    several shapes. Raises UserError for another shape than these.
    """
    offset, size = vocabulary.image_token_offset, []
    grid = tuple(getattr(codes, "shape", ()))
    if templates.shapes:
        if grid not in templates.shapes or encode is None:
            known = ", ".join(map(size_word, templates.shapes))
            raise UserError(
                f"a picture of codes {list(grid)} is none of the shapes {known} (rows*columns) of this model"
            )
        size = size_ids(templates.shapes.index(grid), encode, templates)
    if len(grid) == 2:
        codes = codes.reshape(-1)
    return [*size, vocabulary.vision_start_id, *(offset + int(code) for code in codes), vocabulary.vision_end_id]


def _encode(text: str, encode: Encode) -> list[int]:
    return [int(token) for token in encode(text)] if text else []
