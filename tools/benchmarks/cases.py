"""Models and rows of the step benchmark."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy

from model.config import SHARED, ModelConfig, layer_kinds
from model.prompts import DEFAULT_TEMPLATES
from model.vocabulary import IGNORED, QWEN25_EMBEDDING_ROWS, Vocabulary
from pretrain.row_tensors import Row, assemble
from pretrain.rows import RowSize, seeded
from pretrain.system.errors import UserError
from pretrain.tasks import IMAGE_TO_TEXT, TEXT_TO_IMAGE, build_document, tokenize_prompts

ROW_MULTIPLE = 8  # tokens of each modality come in multiples of this
STRETCH = 1024  # tokens of text, then of a picture, that follow each other in a long document
CAPTION_TOKENS = (8, 64)  # shortest and longest caption
SIZES = {  # hidden, feed-forward, heads, key-value heads, head width, text ids, codes, layers
    "tiny": (64, 176, 4, 2, 16, 512, 256, 4),
    "small": (256, 704, 2, 1, 128, 2048, 1024, 4),
    "3b": (2048, 11008, 16, 2, 128, QWEN25_EMBEDDING_ROWS, 8192, 6),
}
GRIDS = {"tiny": (4, 4), "small": (32, 32), "3b": (32, 32)}  # codes of a picture: 32 x 32 is Chameleon's at 512 px
PICTURES = {"tiny": 2, "small": 4, "3b": 8}  # pictures in a caption-picture row


@dataclass(frozen=True)
class Case:
    """A row to measure, and its name in tables."""

    name: str
    row: Row


def uni_x_config(name: str, layers: int = 0) -> ModelConfig:
    """Qwen2.5's architecture at size `name`; a third of the layers separated at the input end, a sixth at the output
    end.

    `layers`: how many (0: the size's own). Where a sixth is less than a layer, one is separated.
    """
    hidden, feed_forward, heads, kv_heads, width, text_ids, codes, own = SIZES[name]
    layers = layers or own
    if layers < 3:
        raise UserError(f"--layers {layers}: give at least 3, for separated layers at both ends of shared ones")
    return ModelConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        vocab_size=text_ids + codes,
        image_token_offset=text_ids,
        codebook_size=codes,
        vision_start_token_id=text_ids - 3,
        vision_end_token_id=text_ids - 2,
        eos_token_id=text_ids - 1,
        layer_kinds=layer_kinds(layers, max(1, layers // 3), max(1, layers // 6)),
    )


def shared_config(config: ModelConfig) -> ModelConfig:
    """Baseline with the same activated parameters: as wide and as deep, all layers shared."""
    return dataclasses.replace(config, layer_kinds=(SHARED,) * config.num_hidden_layers)


def _random_text(vocabulary: Vocabulary, tokens: int, generator) -> numpy.ndarray:
    return generator.integers(0, vocabulary.vision_start_id, tokens)


def caption_documents(config: ModelConfig, grid: tuple[int, int], pictures: int) -> list:
    """(ids, labels) of captioned images as in training, every fifth of them image-to-text."""
    vocabulary, generator = config.vocabulary, seeded("captions")
    templates = dataclasses.replace(DEFAULT_TEMPLATES, grid=grid, vq_fingerprint="")
    prompts = tokenize_prompts(
        lambda text: _random_text(vocabulary, len(text.split()), generator).tolist(), vocabulary, templates
    )
    documents = []
    for number in range(pictures):
        caption = _random_text(vocabulary, generator.integers(*CAPTION_TOKENS, endpoint=True), generator)
        codes = generator.integers(0, vocabulary.codebook_size, grid[0] * grid[1])
        task = IMAGE_TO_TEXT if number % 5 == 4 else TEXT_TO_IMAGE
        documents.append(build_document(prompts, task, number, caption, codes, train_on_prompts=False))
    return documents


def balanced_document(config: ModelConfig, tokens: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(ids, labels) of one document, alternating half text and half vision; every token but the last has a target."""
    vocabulary, generator = config.vocabulary, seeded(f"balanced {tokens}")
    pieces: list = []
    left = tokens // 2
    while left:
        stretch = min(STRETCH, left)
        codes = vocabulary.image_token_offset + generator.integers(0, vocabulary.codebook_size, stretch - 1)
        words = _random_text(vocabulary, stretch - 1, generator)
        pieces += [words, [vocabulary.vision_start_id], codes, [vocabulary.vision_end_id]]
        left -= stretch
    ids = numpy.concatenate(pieces).astype(numpy.int64)
    return ids, numpy.append(ids[1:], IGNORED)


def caption_row(config: ModelConfig, grid: tuple[int, int], pictures: int) -> Case:
    """Row of kind (a): captioned images, with as little padding as makes both modalities a multiple."""
    documents = caption_documents(config, grid, pictures)
    ids = numpy.concatenate([document[0] for document in documents])
    visual = int(config.vocabulary.is_visual(ids).sum())
    tokens = sum(-(-count // ROW_MULTIPLE) * ROW_MULTIPLE for count in (len(ids) - visual, visual))
    row = assemble(0, documents, config.vocabulary, RowSize(tokens, ROW_MULTIPLE))
    return Case(f"{pictures} captioned pictures", row)


def long_row(config: ModelConfig, tokens: int) -> Case:
    """Row of kind (b): one long balanced document."""
    if tokens < 2 * ROW_MULTIPLE or tokens % (2 * ROW_MULTIPLE):
        raise UserError(f"--documents {tokens}: give multiples of {2 * ROW_MULTIPLE} tokens")
    row = assemble(0, [balanced_document(config, tokens)], config.vocabulary, RowSize(tokens, ROW_MULTIPLE))
    return Case(f"document of {tokens:,}", row)


def cases(config: ModelConfig, size: str, kinds: list[str], documents: list[int]) -> list[Case]:
    """Rows to measure: `kinds` names a, b or both; `documents` are the lengths of b."""
    made = [caption_row(config, GRIDS[size], PICTURES[size])] if "a" in kinds else []
    return made + ([long_row(config, tokens) for tokens in documents] if "b" in kinds else [])
