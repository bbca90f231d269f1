"""A document of a code shard: the MDS columns, and conversion to and from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenization.readers.document import ROLES, Picture, Text

COLUMNS = {
    "id": "str",
    "source": "str",
    "kind": "str",
    "texts": "json",
    "text_ids": "ndarray:uint32",
    "text_lengths": "ndarray:uint32",
    "codes": "ndarray:uint16",
    "grids": "ndarray:uint16",
    "layout": "ndarray:uint8",
}
"""What a sample holds. id: stable and unique within its file of the corpus. source: the corpus. kind: one of KINDS in
`readers/document.py`. texts: all texts in order. text_ids: ids of all texts, one after the other. text_lengths: one a
text. codes: those of all pictures, one after the other, each row by row. grids: height and width in codes, a pair a
picture. layout: an entry for each text and picture, in document order: PICTURE for a picture, plus ROLES.index(role)
times ROLE, plus WORDING for a text that is another wording of the text before it, plus SHAPE times the number of a picture's
grid in the dataset's set of shapes, whose first is the square.
MDS cannot hold an empty array: one zero (for grids, one pair of zeros) stands for it. `from_mds` takes it out again."""

PICTURE, ROLE, WORDING, SHAPE = 1, 2, 8, 16


@dataclass(frozen=True)
class CodedDocument:
    """A document ready to be written: text_ids uint32 [tokens] for each text, codes uint16 [h, w] for each image.

    `layout` uint8 [texts + pictures] says in which order they stand, and who says them.
    """

    id: str
    source: str
    kind: str
    texts: tuple[str, ...]
    text_ids: list[np.ndarray]
    codes: list[np.ndarray]
    layout: np.ndarray


@dataclass(frozen=True)
class Part:
    """A part of a document as read: an image's codes [n], or a text's wordings as (number of the text, ids).

    `shape` is the number of a picture's grid in the set of its dataset.
    """

    role: str
    codes: np.ndarray | None
    grid: tuple[int, int] | None
    wordings: tuple[tuple[int, np.ndarray], ...]
    shape: int = 0


def layout_of(parts: Iterable[Text | Picture], shapes: Iterable[int] = ()) -> np.ndarray:
    """Layout of a document's parts, whose images have these shapes, or all the first."""
    entries: list[int] = []
    shape = iter(shapes)
    for part in parts:
        role = ROLES.index(part.role) * ROLE
        if isinstance(part, Picture):
            entries.append(PICTURE + role + SHAPE * next(shape, 0))
        else:
            entries += [role, *[role + WORDING] * (len(part.wordings) - 1)]
    return np.array(entries, dtype=np.uint8)


def entry_lengths(document: CodedDocument) -> list[int]:
    """Tokens of each text and codes of each image, in the order of the layout."""
    texts, pictures = iter(document.text_ids), iter(document.codes)
    return [next(pictures).size if entry & PICTURE else len(next(texts)) for entry in document.layout]


def parts_of(sample: dict[str, Any]) -> Iterator[Part]:
    """The parts of a sample as `CodeDataset` gives it, in document order."""
    text = token = picture = code = 0
    wordings: list[tuple[int, np.ndarray]] = []
    said_by = ""
    for entry in map(int, sample["layout"]):
        if wordings and not entry & WORDING:
            yield Part(said_by, None, None, tuple(wordings))
            wordings = []
        said_by = ROLES[entry // ROLE % 4]
        if entry & PICTURE:
            rows, columns = map(int, sample["grids"][2 * picture : 2 * picture + 2])
            yield Part(said_by, sample["codes"][code : code + rows * columns], (rows, columns), (), entry // SHAPE)
            picture, code = picture + 1, code + rows * columns
        else:
            length = int(sample["text_lengths"][text])
            wordings.append((text, sample["text_ids"][token : token + length]))
            text, token = text + 1, token + length
    if wordings:
        yield Part(said_by, None, None, tuple(wordings))


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
        "layout": joined([document.layout], np.uint8, 1),
    }


def from_mds(columns: dict[str, Any]) -> dict[str, Any]:
    """Arrays from the columns, with their true lengths, which may be zero."""
    grids = columns["grids"] if columns["grids"].any() else columns["grids"][:0]
    codes = int(grids[0::2].astype(np.int64) @ grids[1::2].astype(np.int64))
    lengths = columns["text_lengths"][: len(columns["texts"])]
    return columns | {
        "text_ids": columns["text_ids"][: int(lengths.sum())],
        "text_lengths": lengths,
        "codes": columns["codes"][:codes],
        "grids": grids,
        "layout": columns["layout"][: len(lengths) + len(grids) // 2],
    }


def joined(arrays: list[Any], dtype: type, placeholder: int) -> np.ndarray:
    """Concatenated arrays; `placeholder` zeros if that would be empty."""
    array = np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
    return array if array.size else np.zeros(placeholder, dtype)
