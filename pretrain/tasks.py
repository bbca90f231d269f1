"""What one document becomes in training: a task is drawn for it, and it turns into ids and targets.

Captioned pictures train in both directions: caption -> picture, and picture -> caption. A share of the former has its
prompt replaced by the unconditional one, for classifier-free guidance. All draws come from the planner's seed, so a
resumed or repeated run asks every document the same question.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy

from model import prompts
from model.vocabulary import IGNORED, Vocabulary
from model.prompts import PromptTemplates

TEXT, TEXT_TO_IMAGE, IMAGE_TO_TEXT, UNCONDITIONAL = range(4)
TASK_NAMES = ("text", "text_to_image", "image_to_text", "unconditional")


@dataclass(frozen=True)
class TaskShares:
    """How tasks are drawn for captioned pictures."""

    text_to_image: float  # share of draws that ask for a picture; the others ask for a caption
    unconditional: float  # share of the former whose prompt is dropped
    train_on_prompts: bool  # whether the text of a picture's prompt is a target too
    first_text: float = 0.0  # share of draws that take a document's first text; the others take any, evenly
    code_noise: float = 0.0  # share of drawn pictures of whose input codes some are replaced by random ones


@dataclass(frozen=True)
class TokenizedPrompts:
    """The wordings in ids, and what else is needed to put documents together. Picklable, for loader workers."""

    vocabulary: Vocabulary
    templates: PromptTemplates
    pieces: dict[str, tuple[int, ...]]

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a fixed piece of a template: the only strings that training encodes."""
        return self.pieces[text]


def tokenize_prompts(
    encode: Callable[[str], list[int]], vocabulary: Vocabulary, templates: PromptTemplates
) -> TokenizedPrompts:
    """Encode every piece of the templates once."""
    texts = {templates.unconditional, *templates.image_to_text}
    for wording in templates.text_to_image:
        texts.update(wording.split(prompts.CAPTION))
    return TokenizedPrompts(vocabulary, templates, {text: tuple(encode(text)) if text else () for text in sorted(texts)})


@lru_cache(maxsize=8)
def prompt_lengths(tokenized: tuple[tuple[str, int], ...], templates: PromptTemplates) -> tuple[numpy.ndarray, ...]:
    """Text tokens that each wording adds to a caption, by task: (text_to_image [w], image_to_text [w], unconditional)."""
    length = dict(tokenized)
    to_image = [sum(length[piece] for piece in w.split(prompts.CAPTION)) for w in templates.text_to_image]
    to_text = [length[w] for w in templates.image_to_text]
    return numpy.array(to_image), numpy.array(to_text), numpy.array([length[templates.unconditional]])


def document_lengths(
    tokenized: TokenizedPrompts,
    task: numpy.ndarray,
    wording: numpy.ndarray,
    caption_tokens: numpy.ndarray,
    picture_tokens: numpy.ndarray,
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Draws of n documents -> (text tokens [n], vision tokens [n]) that `build_document` will make of them.

    `<|vision_start|>` counts as vision, `<|vision_end|>` and the end of the document as text.
    """
    sizes = tuple((text, len(ids)) for text, ids in tokenized.pieces.items())
    to_image, to_text, unconditional = prompt_lengths(sizes, tokenized.templates)
    text = numpy.where(task == TEXT, caption_tokens + 1, 0)
    text = numpy.where(task == TEXT_TO_IMAGE, caption_tokens + to_image[wording % len(to_image)] + 2, text)
    text = numpy.where(task == IMAGE_TO_TEXT, caption_tokens + to_text[wording % len(to_text)] + 2, text)
    text = numpy.where(task == UNCONDITIONAL, unconditional[0] + 2, text)
    return text, numpy.where(task == TEXT, 0, picture_tokens + 1)


def build_document(
    tokenized: TokenizedPrompts,
    task: int,
    wording: int,
    caption: numpy.ndarray,
    codes: numpy.ndarray,
    train_on_prompts: bool,
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """One document -> (ids [n], labels [n]) int64; a label is the next token, or IGNORED where nothing is learned.

    caption: token ids of the chosen text; codes: codebook indices of the picture, row-major. The last token of a
    document has no label: it does not predict the next document.
    """
    vocabulary, templates = tokenized.vocabulary, tokenized.templates
    if task == TEXT:
        ids, prompt = [*map(int, caption), vocabulary.eos_id], 1
    elif task == IMAGE_TO_TEXT:
        wording %= len(templates.image_to_text)
        start = prompts.image_to_text_ids(codes, tokenized.encode, vocabulary, templates, wording)
        ids, prompt = [*start, *map(int, caption), vocabulary.eos_id], len(start)
    else:
        if task == TEXT_TO_IMAGE:
            wording %= len(templates.text_to_image)
            start = prompts.text_to_image_ids(caption, tokenized.encode, vocabulary, templates, wording)
        else:
            start = prompts.unconditional_ids(tokenized.encode, vocabulary, templates)
        picture = prompts.picture_ids(codes, vocabulary)[1:]  # the prompt ends with <|vision_start|> already
        ids, prompt = [*start, *picture, vocabulary.eos_id], 1 if train_on_prompts else len(start)
    ids = numpy.asarray(ids, dtype=numpy.int64)
    labels = numpy.full_like(ids, IGNORED)
    labels[:-1] = ids[1:]
    labels[: prompt - 1] = IGNORED
    return ids, labels


def replace_codes(
    ids: numpy.ndarray, vocabulary: Vocabulary, share: float, generator: numpy.random.Generator
) -> numpy.ndarray:
    """Ids [n] of a drawn picture as the model reads them: in `share` of the cases, codes are replaced by random ones.

    How many of them is drawn too: from none to all, two thirds on average. Labels stay the true codes, so the model
    must go by the prompt where it could else continue a picture that it knows by heart; it also learns to go on after a
    bad code.
    """
    if generator.random() >= share:
        return ids
    replaced = vocabulary.is_code(ids) & (generator.random(len(ids)) < math.sqrt(generator.random()))
    random_codes = vocabulary.image_token_offset + generator.integers(0, vocabulary.codebook_size, len(ids))
    return numpy.where(replaced, random_codes, ids)


def draw_tasks(generator: numpy.random.Generator, has_picture: numpy.ndarray, shares: TaskShares) -> numpy.ndarray:
    """Task of each of n documents, int64 [n]; plain text is always TEXT."""
    direction, dropped = generator.random(len(has_picture)), generator.random(len(has_picture))
    to_image = numpy.where(dropped < shares.unconditional, UNCONDITIONAL, TEXT_TO_IMAGE)
    captioned = numpy.where(direction < shares.text_to_image, to_image, IMAGE_TO_TEXT)
    return numpy.where(has_picture, captioned, TEXT)
