"""Training samples from documents: a task is drawn for each, and it becomes ids and targets.

Captioned pictures train text-to-image and captioning. A share of the former has the unconditional prompt, for
classifier-free guidance. Plain text and interleaved documents have a loss on everything. Conversations and edits have
turns, with a loss on the assistant's; an edit may lose its instruction, its source picture or both (condition dropout). All
draws come from the planner's seed, so a resumed or repeated run has the same tasks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy

from model import prompts
from model.hf.shapes_uni_x import trailing_shape
from model.prompts import BETWEEN_TURNS, TURN_END, TURN_START, PromptTemplates
from model.shapes import size_word
from model.vocabulary import IGNORED, Vocabulary
from pretrain.system.errors import UserError
from tokenization.readers.document import CONVERSATION, EDIT, INTERLEAVED, KINDS, ROLES
from tokenization.readers.document import TEXT as TEXT_KIND
from tokenization.sample import PICTURE, ROLE, SHAPE, WORDING, Part

TEXT, TEXT_TO_IMAGE, IMAGE_TO_TEXT, UNCONDITIONAL, IN_ORDER, TURNS, NO_INSTRUCTION, NO_SOURCE, NEITHER = range(9)
TASK_NAMES = (
    "text",
    "text_to_image",
    "image_to_text",
    "unconditional",
    "in_order",
    "turns",
    "edit_without_instruction",
    "edit_without_source",
    "edit_without_either",
)
ORDERED = (IN_ORDER, TURNS, NO_INSTRUCTION, NO_SOURCE, NEITHER)
"""Tasks whose documents are put together part by part. The last three are edits that lose what guidance leaves out."""

FIXED_TASKS = {TEXT_KIND: TEXT, INTERLEAVED: IN_ORDER, CONVERSATION: TURNS, EDIT: TURNS}
"""Tasks of the kinds of documents that have no choice."""

USER, ASSISTANT = ROLES.index("user"), ROLES.index("assistant")


@dataclass(frozen=True)
class TaskShares:
    """Task shares of captioned images."""

    text_to_image: float  # share of draws for text-to-image; the others train captioning
    unconditional: float  # share of the former with the unconditional prompt
    train_on_prompts: bool  # whether the text of a picture's prompt has a loss, too
    first_text: float = (
        0.0  # share of draws that take a document's first text; the others take any text with equal chance
    )
    code_noise: float = 0.0  # code noise: share of generated pictures with some input codes replaced
    drop_instruction: float = 0.0  # share of edits without their instruction
    drop_source: float = 0.0  # share of edits without their source picture, drawn independently
    drop_both: float = 0.0  # share of edits without both, in addition to those by chance
    shared_noise: float = (
        0.0  # code noise of edits: share with some codes replaced by random ones, the same in all pictures
    )


@dataclass(frozen=True)
class TokenizedPrompts:
    """Tokenized prompt templates, and what else documents are built from. Picklable, for loader workers."""

    vocabulary: Vocabulary
    templates: PromptTemplates
    pieces: dict[str, tuple[int, ...]]

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a fixed part of a template: training encodes no other strings."""
        return self.pieces[text]

    @cached_property
    def sizes(self) -> list[tuple[int, ...]]:
        """Ids of the size words of each shape; one empty tuple for square images."""
        return [self.pieces[size_word(shape)] for shape in self.templates.shapes] or [()]

    @cached_property
    def size_lengths(self) -> numpy.ndarray:
        """Number of size-word ids by shape, int64 [shapes]."""
        return numpy.array([len(ids) for ids in self.sizes])


def tokenize_prompts(
    encode: Callable[[str], list[int]],
    vocabulary: Vocabulary,
    templates: PromptTemplates,
    markup: Callable[[str], list[int]] | None = None,
) -> TokenizedPrompts:
    """Tokenize every part of the templates once.

    encode: of text, which never makes a control token. markup: of the marks of turns, which are control tokens where the
    tokenizer has them; None: `encode` does both.
    """
    marks = {TURN_END, BETWEEN_TURNS, *(TURN_START.format(role=role) for role in ROLES if role)}
    texts = {templates.unconditional, *templates.image_to_text, *map(size_word, templates.shapes)}
    for wording in templates.text_to_image:
        texts.update(wording.split(prompts.CAPTION))
    pieces = {text: tuple(encode(text)) if text else () for text in sorted(texts)}
    return TokenizedPrompts(
        vocabulary, templates, pieces | {mark: tuple((markup or encode)(mark)) for mark in sorted(marks)}
    )


@lru_cache(maxsize=8)
def prompt_lengths(tokenized: tuple[tuple[str, int], ...], templates: PromptTemplates) -> tuple[numpy.ndarray, ...]:
    """Text tokens that each prompt template adds to a caption, by task: (text_to_image [w], image_to_text [w],
    unconditional)."""
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
    shapes: numpy.ndarray | int = 0,
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Draws of n documents -> (text tokens [n], vision tokens [n]) that `build_document` will make of them.

    shapes: numbers of the pictures' grids. `<|vision_start|>` counts as vision, `<|vision_end|>` and the end of the document as text.
    """
    sizes = tuple((text, len(ids)) for text, ids in tokenized.pieces.items())
    to_image, to_text, unconditional = prompt_lengths(sizes, tokenized.templates)
    text = numpy.where(task == TEXT, caption_tokens + 1, 0)
    text = numpy.where(task == TEXT_TO_IMAGE, caption_tokens + to_image[wording % len(to_image)] + 2, text)
    text = numpy.where(task == IMAGE_TO_TEXT, caption_tokens + to_text[wording % len(to_text)] + 2, text)
    text = numpy.where(task == UNCONDITIONAL, unconditional[0] + 2, text)
    text = text + numpy.where(task == TEXT, 0, tokenized.size_lengths[shapes])
    return text, numpy.where(task == TEXT, 0, picture_tokens + 1)


def build_document(
    tokenized: TokenizedPrompts,
    task: int,
    wording: int,
    caption: numpy.ndarray,
    codes: numpy.ndarray,
    train_on_prompts: bool,
    shape: int = 0,
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """One document -> (ids [n], labels [n]) int64; a label is the next token, or IGNORED where there is no loss.

    caption: token ids of the chosen text; codes: codebook indices of the picture, row-major, of the grid number `shape`. The
    size words of a picture that is drawn are learned. The last token of a document has no label: it does not predict the
    next document.
    """
    vocabulary, templates = tokenized.vocabulary, tokenized.templates
    size = tokenized.sizes[shape]
    if task == TEXT:
        ids, prompt = _joined(caption, vocabulary.eos_id), 1
    elif task == IMAGE_TO_TEXT:
        question = tokenized.encode(templates.image_to_text[wording % len(templates.image_to_text)])
        ids = _joined(size, picture_array(codes, vocabulary), question, caption, vocabulary.eos_id)
        prompt = len(size) + len(codes) + 2 + len(question)
    else:
        if task == TEXT_TO_IMAGE:
            before, after = templates.text_to_image[wording % len(templates.text_to_image)].split(prompts.CAPTION)
            start = _joined(tokenized.encode(before), caption, tokenized.encode(after))
        else:
            start = _joined(tokenized.encode(templates.unconditional))
        ids = _joined(start, size, picture_array(codes, vocabulary), vocabulary.eos_id)
        prompt = 1 if train_on_prompts else max(1, len(start) + (not size))
    labels = numpy.full_like(ids, IGNORED)
    labels[:-1] = ids[1:]
    labels[: prompt - 1] = IGNORED
    return ids, labels


def picture_array(codes: numpy.ndarray, vocabulary: Vocabulary) -> numpy.ndarray:
    """`prompts.picture_ids` of codes [n], as int64 [n + 2]; vectorized: 3 microseconds for a thousand codes, against
    200."""
    ids = numpy.empty(len(codes) + 2, numpy.int64)
    ids[0], ids[-1] = vocabulary.vision_start_id, vocabulary.vision_end_id
    numpy.add(codes, vocabulary.image_token_offset, out=ids[1:-1], dtype=numpy.int64, casting="unsafe")
    return ids


def _joined(*stretches: Sequence[int] | numpy.ndarray | int) -> numpy.ndarray:
    """Concatenate arrays, sequences and single ids to one int64 array."""
    return numpy.concatenate(
        [numpy.asarray([stretch] if isinstance(stretch, int) else stretch, dtype=numpy.int64) for stretch in stretches]
    )


def ordered_lengths(
    tokenized: TokenizedPrompts,
    task: numpy.ndarray,
    draw: numpy.ndarray,
    counts: numpy.ndarray,
    lengths: numpy.ndarray,
    layout: numpy.ndarray,
) -> numpy.ndarray:
    """Tokens [n] of `build_ordered` for n documents.

    task: int [n], of ORDERED. draw: int [n], chooses among wordings. counts: entries of each document; lengths and
    layout: those of all entries, one document after the other.
    """
    turns = task != IN_ORDER
    document = numpy.repeat(numpy.arange(len(counts)), counts)
    group = numpy.cumsum(layout & WORDING == 0) - 1  # the wordings of one text
    size = numpy.bincount(group, minlength=1)
    place = numpy.arange(len(group)) - (numpy.cumsum(size) - size)[group]
    picture = layout & PICTURE != 0
    chosen = picture | (place == draw[document] % size[group])
    document, layout, lengths, picture = document[chosen], layout[chosen], lengths[chosen], picture[chosen]
    role = layout // ROLE % len(ROLES)
    begins = numpy.ones(len(role), dtype=bool)
    begins[1:] = (role[1:] != role[:-1]) | (document[1:] != document[:-1])
    size_of = {text: len(ids) for text, ids in tokenized.pieces.items()}
    around = size_of[TURN_END] + size_of[BETWEEN_TURNS]
    turn = numpy.array([0, *(size_of[TURN_START.format(role=name)] + around for name in ROLES[1:])])
    asked, task_of = role == USER, task[document]
    dropped = asked & numpy.where(picture, task_of == NO_SOURCE, task_of == NO_INSTRUCTION)
    lengths = lengths + numpy.where(picture, 2 + tokenized.size_lengths[layout // SHAPE], 0)
    tokens = numpy.where(dropped, 0, lengths) + numpy.where(begins & turns[document], turn[role], 0)
    found = numpy.bincount(document, tokens, minlength=len(counts)).astype(numpy.int64) + ~turns
    answers = numpy.flatnonzero((task_of == NEITHER) & picture & (role == ASSISTANT))
    alone, first = numpy.unique(document[answers], return_index=True)
    found[alone] = lengths[answers[first]] + size_of[tokenized.templates.unconditional] + 1
    return found


def build_ordered(
    tokenized: TokenizedPrompts, task: int, draw: int, parts: Iterable[Part]
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """An interleaved document -> (ids [n], labels [n]) int64, as `build_document` gives them.

    Without turns all of it is learned, and the end of the document. With turns, what the assistant says is learned: its
    texts, its pictures from `<|vision_start|>` on, and the end of its turn; `draw` chooses among wordings. An edit without
    its instruction or its source has turns of the user with nothing in their place; without either, its first answer
    stands after the unconditional prompt. These are the prompts that guidance compares (`model.prompts.edit_ids`).
    """
    vocabulary, turns = tokenized.vocabulary, task != IN_ORDER
    if task == NEITHER:
        codes, shape = next((p.codes, p.shape) for p in parts if p.codes is not None and p.role == "assistant")
        return build_document(tokenized, UNCONDITIONAL, 0, codes[:0], codes, False, shape)
    stretches: list[tuple[Sequence[int] | numpy.ndarray, bool]] = []  # ids, and whether they have a loss
    role = ""
    for part in parts:
        if turns and part.role != role:
            stretches += _turn_end(tokenized, role)
            stretches.append((tokenized.pieces[TURN_START.format(role=part.role)], False))
            role = part.role
        learned = not turns or part.role == "assistant"
        if part.role == "user" and task == (NO_INSTRUCTION if part.codes is None else NO_SOURCE):
            continue
        if part.codes is not None:
            stretches.append((tokenized.sizes[part.shape], learned))
            stretches.append((picture_array(part.codes, vocabulary), learned))
        else:
            stretches.append((part.wordings[draw % len(part.wordings)][1], learned))
    stretches += _turn_end(tokenized, role) if turns else [([vocabulary.eos_id], True)]
    ids = numpy.concatenate([numpy.asarray(stretch, dtype=numpy.int64) for stretch, _ in stretches])
    answers = numpy.repeat([answer for _, answer in stretches], [len(stretch) for stretch, _ in stretches])
    labels = numpy.full_like(ids, IGNORED)
    labels[:-1] = numpy.where(answers[1:], ids[1:], IGNORED)
    return ids, labels


def _turn_end(tokenized: TokenizedPrompts, role: str) -> list[tuple[Sequence[int], bool]]:
    if not role:
        return []
    return [(tokenized.pieces[TURN_END], role == "assistant"), (tokenized.pieces[BETWEEN_TURNS], False)]


def stretches_of(
    ids: numpy.ndarray, vocabulary: Vocabulary, capacity: int, sizes: Sequence[tuple[int, ...]] = ((),)
) -> list[tuple[int, int]]:
    """(start, length) of parts of at most `capacity` tokens that split no image, nor its size words from it.

    UserError if one is larger.
    """
    whole = numpy.concatenate(
        [vocabulary.is_code(ids) | (ids == vocabulary.vision_end_id), [False]]
    )  # not split before
    if sizes[0]:
        longest = max(map(len, sizes))
        for at in numpy.flatnonzero(ids == vocabulary.vision_start_id).tolist():
            shape = trailing_shape(ids[max(0, at - longest) : at].tolist(), sizes)
            if shape is not None:
                whole[at - len(sizes[shape]) + 1 : at + 1] = True
    found, start = [], 0
    while start < len(ids):
        end = min(start + capacity, len(ids))
        while end > start and whole[end]:
            end -= 1
        if end == start:
            raise UserError(
                f"a picture has more than the {capacity} tokens that a row holds: raise data.sequence_length"
            )
        found.append((start, end - start))
        start = end
    return found


def replace_codes(
    ids: numpy.ndarray, vocabulary: Vocabulary, share: float, generator: numpy.random.Generator
) -> numpy.ndarray:
    """Code noise: ids [n] of a generated image as the model's input; in `share` of the cases some codes are replaced by
    random ones.

    How many of them is drawn too: from none to all, two thirds on average. Labels stay the true codes, so the model
    must go by the prompt where it could else continue a picture that it knows by heart; it also learns to go on after a
    bad code.
    """
    if generator.random() >= share:
        return ids
    replaced = vocabulary.is_code(ids) & (generator.random(len(ids)) < math.sqrt(generator.random()))
    random_codes = vocabulary.image_token_offset + generator.integers(0, vocabulary.codebook_size, len(ids))
    return numpy.where(replaced, random_codes, ids)


def replace_shared_codes(
    parts: Sequence[Part], codebook_size: int, share: float, generator: numpy.random.Generator
) -> list[Part]:
    """Code noise of an edit's parts; in `share` of the cases some codes are random, the same at one place of every
    image.

    How many of them is drawn too, evenly from none to all. The model has to learn them as they are: what it cannot know
    by heart it must copy from its source, as most of a picture in most edits. Pictures of several sizes stay as they are.
    """
    sizes = {(len(part.codes), part.shape) for part in parts if part.codes is not None}
    if generator.random() >= share or len(sizes) != 1:
        return list(parts)
    count, _ = sizes.pop()
    replaced = generator.random(count) < generator.random()
    random_codes = generator.integers(0, codebook_size, count)
    return [
        part if part.codes is None else dataclasses.replace(part, codes=numpy.where(replaced, random_codes, part.codes))
        for part in parts
    ]


def draw_tasks(generator: numpy.random.Generator, kinds: numpy.ndarray, shares: TaskShares) -> numpy.ndarray:
    """Task of each of n documents, int64 [n], by its kind (a position in KINDS); captioned images have a choice."""
    direction, dropped = generator.random(len(kinds)), generator.random(len(kinds))
    to_image = numpy.where(dropped < shares.unconditional, UNCONDITIONAL, TEXT_TO_IMAGE)
    captioned = numpy.where(direction < shares.text_to_image, to_image, IMAGE_TO_TEXT)
    of_kind = numpy.array([FIXED_TASKS.get(kind, -1) for kind in KINDS])[kinds]
    tasks = numpy.where(of_kind >= 0, of_kind, captioned)
    if not (shares.drop_instruction or shares.drop_source or shares.drop_both):
        return tasks
    instruction, source, both = generator.random((3, len(kinds)))
    both = both < shares.drop_both
    no_instruction, no_source = both | (instruction < shares.drop_instruction), both | (source < shares.drop_source)
    edits = numpy.array([[TURNS, NO_SOURCE], [NO_INSTRUCTION, NEITHER]])[
        no_instruction.astype(int), no_source.astype(int)
    ]
    return numpy.where(kinds == KINDS.index(EDIT), edits, tasks)
