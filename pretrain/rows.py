"""Rows are planned, not collated: row i of epoch e is a pure function of the data's fingerprints, the seed, and sizes.

Planning reads the length index only. The state of training data is therefore one integer, the number of rows consumed,
on any number of ranks and workers.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from model.errors import UserError
from pretrain.tasks import TEXT, TaskShares, TokenizedPrompts, document_lengths, draw_tasks

OPEN_ROWS = 64  # rows that are being filled at a time: more would pack better and plan slower


@dataclass(frozen=True)
class SourceLengths:
    """The length index of one dataset, as `tokenization.shards` reads it, and how often an epoch uses it."""

    fingerprint: str
    weight: float  # times that each document is used in an epoch; a fraction is drawn
    text_offsets: numpy.ndarray  # int64 [documents + 1]: texts of document d are text_offsets[d] : text_offsets[d + 1]
    text_lengths: numpy.ndarray  # int32 [texts], in tokens
    image_tokens: numpy.ndarray  # int32 [documents], codes of all pictures


@dataclass(frozen=True)
class Piece:
    """A document, or a stretch of a long text, at its place in a row."""

    source: int
    document: int
    text: int  # which of the document's texts
    task: int
    wording: int
    start: int  # first token of the stretch (0 unless a long text was split)
    length: int  # tokens of the stretch
    vision: int  # how many of them are vision tokens


@dataclass(frozen=True)
class RowSize:
    """S tokens a row; text and vision tokens both come in multiples of `multiple`, and at least one multiple of each."""

    tokens: int
    multiple: int

    def padded(self, text: int, vision: int) -> tuple[int, int]:
        """Tokens of each modality after rounding up: text takes what is left of the row."""
        vision = max(1, -(-vision // self.multiple)) * self.multiple
        return self.tokens - vision, vision

    def fits(self, text: int, vision: int) -> bool:
        """Whether a row has room for this many tokens of each modality."""
        room, _ = self.padded(text, vision)
        return max(text, 1) <= room

    def check(self) -> None:
        """Raises UserError for sizes that no row can have."""
        if self.multiple < 1 or self.tokens % self.multiple or self.tokens < 2 * self.multiple:
            raise UserError(
                f"data.row_length {self.tokens} with data.row_multiple {self.multiple}: the length must be a multiple "
                "of row_multiple, and at least twice as large"
            )


def seeded(purpose: str) -> numpy.random.Generator:
    """The same random numbers for the same purpose, on every machine and in every process."""
    digest = hashlib.sha256(purpose.encode()).digest()
    return numpy.random.Generator(numpy.random.Philox(key=int.from_bytes(digest[:16], "little")))


class RowPlan:
    """All rows of all epochs, planned an epoch at a time when asked for."""

    def __init__(
        self, sources: Sequence[SourceLengths], tokenized: TokenizedPrompts, shares: TaskShares, size: RowSize, seed: int
    ):
        size.check()
        self.sources, self.tokenized, self.shares, self.size, self.seed = sources, tokenized, shares, size, seed
        self.fingerprint = self._fingerprint()
        self._first_row = [0]  # global index of the first row of each epoch planned so far, and of the one after
        self._epochs: dict[int, list[list[Piece]]] = {}

    def row(self, index: int) -> list[Piece]:
        """Row `index`, counted from the start of training over all epochs."""
        epoch = self.epoch_of(index)
        return self._plan(epoch)[index - self._first_row[epoch]]

    def epoch_of(self, index: int) -> int:
        """The epoch that row `index` belongs to."""
        while self._first_row[-1] <= index:
            self._plan(len(self._first_row) - 1)
        return bisect_right(self._first_row, index) - 1

    def _fingerprint(self) -> str:
        """Changes when any row could change: data, weights, tasks, wordings, sizes, seed."""
        identity = [
            [(source.fingerprint, source.weight) for source in self.sources],
            sorted(self.tokenized.pieces.items()),
            self.tokenized.templates.text_to_image,
            self.tokenized.templates.image_to_text,
            vars(self.tokenized.vocabulary),
            vars(self.shares),
            vars(self.size),
            self.seed,
        ]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _plan(self, epoch: int) -> list[list[Piece]]:
        if epoch not in self._epochs:
            rows = pack(self._draw(epoch), self.size)
            if not rows:
                raise UserError("the data sources hold no documents: check data.sources and their weights")
            if epoch == len(self._first_row) - 1:
                self._first_row.append(self._first_row[-1] + len(rows))
            for old in [e for e in self._epochs if e != epoch - 1]:
                del self._epochs[old]  # training reads forwards: the epoch before may still be in other hands
            self._epochs[epoch] = rows
        return self._epochs[epoch]

    def _draw(self, epoch: int) -> list[Piece]:
        """The documents of an epoch in shuffled order, each with its task, text and wording."""
        generator = seeded(f"{self.fingerprint}:{epoch}")
        columns = []
        for number, source in enumerate(self.sources):
            documents = numpy.arange(len(source.image_tokens))
            repeats = int(source.weight) + (generator.random(len(documents)) < source.weight % 1)
            documents = numpy.repeat(documents, repeats)
            texts = numpy.diff(source.text_offsets)[documents]
            text = (generator.random(len(documents)) * texts).astype(numpy.int64)
            text[generator.random(len(documents)) < self.shares.first_text] = 0
            task = draw_tasks(generator, source.image_tokens[documents] > 0, self.shares)
            wording = generator.integers(0, 2**16, len(documents))
            caption = source.text_lengths[source.text_offsets[documents] + text]
            text_tokens, vision = document_lengths(self.tokenized, task, wording, caption, source.image_tokens[documents])
            zeros = numpy.zeros_like(documents)
            columns.append(
                numpy.stack([zeros + number, documents, text, task, wording, zeros, text_tokens + vision, vision], axis=1)
            )
        table = numpy.concatenate(columns)
        return [Piece(*map(int, line)) for line in table[generator.permutation(len(table))]]


def split_long_text(piece: Piece, size: RowSize) -> list[Piece]:
    """Cut plain text that no row can hold into stretches that fill whole rows; a document with a picture is never cut."""
    most = size.tokens - size.multiple
    if size.fits(piece.length - piece.vision, piece.vision):
        return [piece]
    if piece.task != TEXT:
        raise UserError(
            f"document {piece.document} of source {piece.source} has {piece.length} tokens with its picture, a row has "
            f"{size.tokens}: raise data.row_length, since a picture is never cut"
        )
    ends = range(piece.start, piece.start + piece.length, most)
    end = piece.start + piece.length
    return [Piece(**{**vars(piece), "start": at, "length": min(most, end - at)}) for at in ends]


def pack(pieces: Sequence[Piece], size: RowSize) -> list[list[Piece]]:
    """Best fit over a window of open rows: each piece goes to the fullest row that has room for it."""
    done: list[list[Piece]] = []
    rows: list[tuple[int, int, list[Piece]]] = []  # (text tokens, vision tokens, pieces), the fullest first
    for whole in pieces:
        for piece in split_long_text(whole, size):
            text = piece.length - piece.vision
            for place, (row_text, row_vision, members) in enumerate(rows):
                if size.fits(row_text + text, row_vision + piece.vision):
                    rows[place] = (row_text + text, row_vision + piece.vision, [*members, piece])
                    break
            else:
                if len(rows) == OPEN_ROWS:
                    done.append(rows.pop(0)[2])
                rows.append((text, piece.vision, [piece]))
                place = len(rows) - 1
            while place and sum(rows[place][:2]) > sum(rows[place - 1][:2]):
                rows[place - 1], rows[place] = rows[place], rows[place - 1]
                place -= 1
    return done + [members for _, _, members in rows]
