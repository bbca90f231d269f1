"""Planning without shards: vocabulary sizes and the documents of a row."""

from __future__ import annotations

import json
from pathlib import Path

from pretrain.config import TrainConfig
from pretrain.planning.activations import RowShape
from pretrain.system.errors import UserError
from tokenization.remote import inside, read_small
from tokenization.storage import is_remote

TEXT_ROWS, CODES = 151_936, 8_192  # Qwen2.5's embedding, Chameleon's codebook
DOCUMENT = (64, 1_025)  # a caption with its prompt; a picture of 32 x 32 codes and its first token


def sizes_of_data(config: TrainConfig, text_rows: int, codes: int) -> tuple[int, int]:
    """(id of code 0, codebook size): as given, from the configuration, from the shards, or the paper's."""
    manifest = inside(config.data.sources[0].path, "manifest.json")
    if is_remote(manifest) or Path(manifest).is_file():
        try:
            found = json.loads(read_small(manifest))
            there = found["tokenizer"]["vocab_size"], found["vq"]["codebook_size"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{manifest}: cannot be read ({error.__class__.__name__}): make the shards again") from None
    else:
        there = TEXT_ROWS, CODES
    return text_rows or config.model.image_token_offset or there[0], codes or there[1]


def row_shape(tokens: int, document: list[int] | None = None) -> RowShape:
    """Row with as many documents of that kind as fit. Raises UserError when none does."""
    text, vision = document or DOCUMENT
    if document is None and text + vision > tokens:
        text, vision = tokens - tokens // 2, tokens // 2
    if min(text, vision) < 0 or text + vision < 1:
        raise UserError(f"--document {text} {vision}: give numbers of tokens, as in --document 64 1025")
    if text + vision > tokens:
        raise UserError(
            f"--document {text} {vision}: data.sequence_length {tokens} has no room for it: give a shorter one"
        )
    return RowShape(tokens, tokens // (text + vision), text, vision)
