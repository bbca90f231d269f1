"""Generation requests, their sampling settings, and their prompts in token ids with lengths checked."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from model.prompts import edit_ids, image_to_text_ids, picture_ids, size_ids, text_to_image_ids, turn_ids
from model.shapes import Framing, shape_of
from pretrain.system.errors import UserError
from pretrain.system.free_memory import free_memory

if TYPE_CHECKING:
    from PIL import Image

    from tools.export.folder import Export

TASKS = ("draw", "caption", "edit", "text", "interleaved")
PICTURE_TASKS = ("draw", "edit")

BRANCHES = {"draw": 2, "edit": 3, "interleaved": 2}
"""Rows of a request: guidance computes it without its caption, and without its source picture, too."""
MASK_BYTES = 8  # of a query and a key: two masks, what they are made of, and the numbers that attention adds
Scale = float | tuple[float, float]  # of guidance: one number, or those of the first and of the last code


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of codes and text. The defaults of the command are the published ones: the paper's guidance,
    the released code's temperature, top-k and top-p, and InstructPix2Pix's image guidance."""

    guidance: Scale
    temperature: float
    top_k: int
    top_p: float
    seed: int
    image_guidance: Scale = 1.5
    text_temperature: float = 0.0
    max_new_tokens: int = 64
    max_images: int = 4
    chat: bool = False  # prompts are conversation turns


@dataclass(frozen=True)
class Request:
    """One request: a prompt, which may be empty for a caption, and the images before it."""

    prompt: str
    images: tuple[Path, ...] = ()
    shape: str = ""  # shape of the generated picture, as a ratio 4:3 or rows*columns; empty: the model's choice


def sample_seed(seed: int, prompt: int, sample: int) -> int:
    """Seed of sample `sample` of prompt number `prompt`: 63 bits of a hash of all three numbers."""
    digest = hashlib.blake2b(f"{seed}/{prompt}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def settings_of(task: str, sampling: Sampling) -> dict:
    """Settings that the results of a task depend on."""
    pictures = ["guidance", "temperature", "top_k", "top_p", "seed"]
    texts = ["text_temperature", "max_new_tokens"] + (["top_k", "top_p", "seed"] if sampling.text_temperature else [])
    used = {
        "draw": pictures,
        "edit": [*pictures, "image_guidance"],
        "caption": [*texts, "chat"],
        "text": [*texts, "chat"],
        "interleaved": [*pictures, *texts, "max_images", "chat"],
    }[task]
    return {name: value for name, value in asdict(sampling).items() if name in used}


def check_lengths(export: Export, task: str, requests: Sequence[Request], sampling: Sampling) -> int:
    """Tokens of the longest prompt. Raises UserError if a request and its answer exceed the model's maximum length."""
    codes = most_tokens(export)
    answer = {"draw": codes, "edit": codes}.get(task, sampling.max_new_tokens)
    if task == "interleaved":
        answer += sampling.max_images * (codes + 1)
    limit, longest = export.model.config.max_position_embeddings, 0
    for request in requests:
        blank = blank_sources(export, len(request.images))
        prompt = len(prompt_ids(export, task, request, blank, sampling.chat)[0])
        tokens, longest = prompt + answer, max(longest, prompt)
        if tokens > limit:
            words = f"prompt {request.prompt[:60]!r}"
            raise UserError(f"{words} needs {tokens} tokens, the model has {limit}: shorten it")
    return longest


def check_memory(task: str, batch: int, tokens: int) -> None:
    """Raises UserError where the attention masks of prompts [batch, tokens] do not fit a CPU's free memory.

    They are quadratic in the tokens, and Linux kills a process that takes more memory than there is, without a word.
    """
    needed = batch * BRANCHES.get(task, 1) * tokens**2 * MASK_BYTES
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"prompts of {tokens:,} tokens, {batch} at a time, need about {needed / 2**30:,.1f} GiB for the masks of "
            f"attention, and {free / 2**30:,.1f} GiB are free: shorten them, or lower --batch-size"
        )


def blank_sources(export: Export, count: int) -> list:
    """Placeholder for the result of `codes_of` for so many images, in the longest case."""
    import numpy

    grids = export.templates.shapes
    if not grids:
        return [[0] * (export.vq.image_size // export.vq.downsample) ** 2] * count
    return [numpy.zeros(max(grids, key=lambda grid: grid[0] * grid[1]), int)] * count


def most_tokens(export: Export) -> int:
    """Tokens that a generated image adds to its prompt, in the longest case."""
    templates = export.templates
    if not templates.shapes:
        return templates.grid[0] * templates.grid[1]
    words = [len(size_ids(shape, export.encode, templates)) for shape in range(len(templates.shapes))]
    return max(rows * columns + 1 + count for (rows, columns), count in zip(templates.shapes, words, strict=True))


def framing_of(export: Export) -> Framing:
    """Framing of prompt images to the model's shapes, as in training, or to the image tokenizer's square."""
    side, pixels = export.vq.image_size // export.vq.downsample, export.vq.downsample
    return Framing(export.templates.shapes or ((side, side),), pixels, export.templates.fit == "pad")


def shape_number(export: Export, asked: str) -> int | None:
    """Number of a requested shape, None without a request. Raises UserError for an unknown one."""
    if not asked:
        return None
    try:
        return shape_of(asked, export.templates.grids)
    except ValueError as error:
        raise UserError(str(error)) from None


def prompt_ids(
    export: Export, task: str, request: Request, sources: Sequence, chat: bool = False
) -> tuple[list[int], list[int] | None]:
    """Ids of a request whose images have the codes `sources`; for an edit, also those without the instruction."""
    encode, vocabulary, templates = export.encode, export.vocabulary, export.templates
    if task == "draw":
        return text_to_image_ids(request.prompt, encode, vocabulary, templates), None
    if task == "edit":
        return edit_ids(sources, request.prompt, encode, export.markup, vocabulary, templates)
    if chat:
        question = request.prompt or templates.image_to_text[0]
        return turn_ids(sources, question, encode, export.markup, vocabulary, templates), None
    if task == "caption":
        return image_to_text_ids(sources[0], encode, vocabulary, templates, request.prompt or 0), None
    pictures = [token for codes in sources for token in picture_ids(codes, vocabulary, encode, templates)]
    return [*pictures, *(int(token) for token in encode(request.prompt))], None


def codes_of(export: Export, request: Request) -> list:
    """Codes of each image of a request, [rows * columns], or [rows, columns] for a model of several shapes.

    Raises RejectedImage, a UserError, for a bad file.
    """
    from tokenization.frames import FURTHER
    from tokenization.preprocess import RejectedImage, open_image, preprocess

    found = []
    for path in request.images:
        try:
            opened = open_image(path)
            picture = preprocess(opened, framing_of(export))
        except RejectedImage as error:  # which names no file where it knew the bytes alone
            raise RejectedImage(error.reason, error.detail, path) from None
        if FURTHER in opened.info:
            tell_further_frames(path)
        found.append(source_codes(export, picture))
    return found


@cache  # a picture may be the source of many results
def tell_further_frames(path: Path) -> None:
    """Say, once for a file, that all but its first frame or page are left out."""
    print(f"warning: {path}: its further frames or pages are left out: give those that count as files", file=sys.stderr)


def source_codes(export: Export, picture: Image.Image):
    """Codes of a prompt's image, encoded alone, so that they do not depend on a batch."""
    codes = export.vq.encode([picture])[0]
    return codes if export.templates.shapes else codes.flatten()
