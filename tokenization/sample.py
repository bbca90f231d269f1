"""One document of a code shard: the MDS columns, and the conversion to and from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenization.readers.document import CAPTION_PAIR, TEXT

COLUMNS = {
    "id": "str",
    "source": "str",
    "kind": "str",
    "texts": "json",
    "text_ids": "ndarray:uint32",
    "text_lengths": "ndarray:uint32",
    "codes": "ndarray:uint16",
    "grids": "ndarray:uint16",
}
"""What a sample holds. id: stable and unique within its source. source: the corpus. kind: one of KINDS. texts: the
captions of the picture, or the one text. text_ids: ids of all texts, one after the other. text_lengths: one a text.
codes: those of all pictures, one after the other, each row by row. grids: height and width in codes, a pair a picture.
MDS cannot hold an empty array: one zero (for grids, one pair of zeros) stands for it. `from_mds` takes it out again."""

KINDS = (CAPTION_PAIR, TEXT)
"""Kinds of documents, in the order by which lengths.npz numbers them."""


@dataclass(frozen=True)
class CodedDocument:
    """A document ready to be written: text_ids uint32 [tokens] for each text, codes uint16 [h, w] for each picture."""

    id: str
    source: str
    kind: str
    texts: tuple[str, ...]
    text_ids: list[np.ndarray]
    codes: list[np.ndarray]


def to_mds(document: CodedDocument) -> dict[str, Any]:
    """The columns of a document."""
    return {
        "id": document.id,
        "source": document.source,
        "kind": document.kind,
        "texts": list(document.texts),
        "text_ids": joined(document.text_ids, np.uint32, 1),
        "text_lengths": joined([[len(ids)] for ids in document.text_ids], np.uint32, 1),
        "codes": joined([codes.reshape(-1) for codes in document.codes], np.uint16, 1),
        "grids": joined([codes.shape for codes in document.codes], np.uint16, 2),
    }


def from_mds(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns as they were meant: arrays of their true lengths, which may be zero."""
    grids = columns["grids"] if columns["grids"].any() else columns["grids"][:0]
    codes = int(grids[0::2].astype(np.int64) @ grids[1::2].astype(np.int64))
    lengths = columns["text_lengths"][: len(columns["texts"])]
    return columns | {
        "text_ids": columns["text_ids"][: int(lengths.sum())],
        "text_lengths": lengths,
        "codes": columns["codes"][:codes],
        "grids": grids,
    }


def joined(arrays: list[Any], dtype: type, placeholder: int) -> np.ndarray:
    """One array of them all; `placeholder` zeros if that would be empty."""
    array = np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
    return array if array.size else np.zeros(placeholder, dtype)
