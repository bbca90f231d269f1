"""Row plan: row i is a pure function of the data's fingerprints, mixture, seed and sizes (deterministic and resumable).

Planning reads the length index only, a block of documents at a time (`mixture.py`). The state of training data is
therefore one integer, the number of rows consumed, on any number of ranks and workers.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from pretrain.mixture import Mixture, MixtureStage, SourceLengths, seeded, tokens_of
from pretrain.packing import argsort_small, pack_mixed
from pretrain.system.errors import UserError
from pretrain.tasks import (
    ORDERED,
    TEXT,
    TURNS,
    TaskShares,
    TokenizedPrompts,
    build_ordered,
    document_lengths,
    draw_tasks,
    ordered_lengths,
    prompt_lengths,
    stretches_of,
)
from tokenization.lengths import AT_ONCE, LengthIndex
from tokenization.readers.document import CAPTION_PAIR, KINDS, ROLES
from tokenization.sample import PICTURE, ROLE, SHAPE, WORDING, Part

__all__ = ["RowSegment", "RowPlan", "RowSize", "SourceLengths", "MixtureStage", "seeded"]

PLAN_VERSION = 3  # version of the plan: another one plans other rows from the same data
NEWER = ("drop_", "shared_")  # prefixes of shares that are not part of the fingerprint while they are zero
MOST_ROWLESS_BLOCKS = 1000
COUNTED = 1 << 14  # draws per source, at least, for estimating its tokens


@dataclass(frozen=True)
class RowSegment:
    """A document, or a part of a long one, at its place in a row."""

    source: int
    document: int
    text: int  # which text of a captioned picture; for interleaved documents, a number that chooses among wordings
    task: int
    wording: int
    start: int  # first token of the part (0 unless a long document was split)
    length: int  # tokens of the part


@dataclass(frozen=True)
class RowSize:
    """Sequence length S; text and vision tokens are each padded to multiples of `multiple`, and at least one
    multiple."""

    tokens: int
    multiple: int

    def padded(self, text: int, vision: int) -> tuple[int, int]:
        """Tokens of each modality after padding: text takes the rest of the row."""
        vision = max(1, -(-vision // self.multiple)) * self.multiple
        return self.tokens - vision, vision

    @property
    def capacity(self) -> int:
        """Tokens that fit into a row for any modalities: padding costs less than one multiple."""
        return self.tokens - self.multiple

    def check(self) -> None:
        """Raises UserError for sizes that no row can have."""
        if self.multiple < 1 or self.tokens % self.multiple or self.tokens < 2 * self.multiple:
            raise UserError(
                f"data.sequence_length {self.tokens} with data.row_multiple {self.multiple}: the length must be a multiple "
                "of row_multiple, and at least twice as large"
            )


class RowPlan:
    """All rows of all epochs, planned one block at a time on demand."""

    def __init__(
        self,
        sources: Sequence[SourceLengths],
        tokenized: TokenizedPrompts,
        shares: TaskShares,
        size: RowSize,
        seed: int,
        stages: Sequence[MixtureStage] = (),
    ):
        size.check()
        self.sources, self.tokenized, self.shares, self.size, self.seed = sources, tokenized, shares, size, seed
        self.fingerprint = self._fingerprint(stages)
        self.mixture = Mixture(sources, stages, self.fingerprint, self._tokens)
        self._first_row = [0]  # global index of the first row of each block counted so far, and of the next
        self._blocks: dict[int, tuple[numpy.ndarray, numpy.ndarray]] = {}

    def row(self, index: int) -> list[RowSegment]:
        """Row `index`, counted from the start of training over all epochs."""
        block = self.block_of(index)
        table, starts = self._planned(block)
        number = index - self._first_row[block]
        return [RowSegment(*line) for line in table[starts[number] : starts[number + 1]].tolist()]

    def block_of(self, index: int) -> int:
        """Block of row `index`; counts the rows of the blocks before it."""
        empty = 0
        while self._first_row[-1] <= index:
            rows = self._count(len(self._first_row) - 1)
            empty = 0 if rows else empty + 1
            if empty > MOST_ROWLESS_BLOCKS:
                raise UserError(
                    f"the data sources hold no documents, or none that a row of {self.size.tokens} tokens can hold: check "
                    "data.sources and their weights, or raise data.sequence_length"
                )
            self._first_row.append(self._first_row[-1] + rows)
        return bisect_right(self._first_row, index) - 1

    def place_of(self, index: int) -> tuple[int, float]:
        """Block of row `index`, and the row's place in it, from 0 to 1."""
        block = self.block_of(index)
        first, end = self._first_row[block : block + 2]
        return block, (index - first) / (end - first)

    def epoch_of(self, index: int) -> int:
        """Stage or, after all stages, epoch of row `index`, from 0."""
        return self.mixture.epoch_of(self.block_of(index))

    def parts(self, segment: RowSegment) -> list[Part]:
        """Parts of a segment's document from the length index, with codes and ids of zero."""
        return parts_of_index(self.sources[segment.source].index, segment.document)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_blocks": {}}

    def _fingerprint(self, stages: Sequence[MixtureStage]) -> str:
        """Hash of everything that rows depend on: data, mixture, tasks, prompt templates, sizes, seed."""
        identity = [
            PLAN_VERSION,
            [(source.fingerprint, source.weight, source.share) for source in self.sources],
            [(stage.tokens, stage.shares) for stage in stages],
            sorted(self.tokenized.pieces.items()),
            self.tokenized.templates.text_to_image,
            self.tokenized.templates.image_to_text,
            vars(self.tokenized.vocabulary),
            {name: value for name, value in vars(self.shares).items() if value or not name.startswith(NEWER)},
            vars(self.size),
            self.seed,
            *[list(self.tokenized.templates.shapes)] * bool(self.tokenized.templates.shapes),
            *["shares of tokens as trained on"] * bool(stages or any(source.share for source in self.sources)),
        ]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def cut_turns(self, number: int) -> float:
        """Share of a source's conversations and edits that are longer than a row: parts after a cut lack their
        question."""
        drawn = self._some(number)
        turns = drawn[:, 3] >= TURNS
        return float((drawn[turns, 6] > self.size.capacity).mean()) if turns.any() else 0.0

    def tokens(self) -> float:
        """Tokens of all documents as trained on, each once."""
        return sum(map(self._tokens, range(len(self.sources))))

    def too_long(self, number: int) -> numpy.ndarray:
        """Numbers int64 [n] of a source's documents that some draw makes longer than a row, and that are not split.

        Draws that do are left out of the rows. Known from the length index alone, some whole documents at a time.
        """
        sizes = tuple((text, len(ids)) for text, ids in self.tokenized.pieces.items())
        to_image, to_text, unconditional = prompt_lengths(sizes, self.tokenized.templates)
        most, alone = max(int(to_image.max()), int(to_text.max())), int(unconditional[0])
        index, found = self.sources[number].index, [numpy.zeros(0, numpy.int64)]
        for low in range(0, len(index), AT_ONCE):
            kinds = index.kinds[low : low + AT_ONCE]
            offsets = index.offsets[low : low + AT_ONCE + 1]
            entries = slice(int(offsets[0]), int(offsets[-1]))
            lengths, layout = (numpy.append(array[entries], 0) for array in (index.lengths, index.layout))
            picture = layout & PICTURE != 0
            starts = (offsets[:-1] - offsets[0]).astype(numpy.int64)
            lengths = lengths + numpy.where(picture, self.tokenized.size_lengths[layout // SHAPE], 0)
            pictures, texts = (
                numpy.maximum.reduceat(numpy.where(which, lengths, 0), starts) for which in (picture, ~picture)
            )
            paired = pictures + 3 + numpy.maximum(texts + most, alone)
            longest = numpy.where(kinds == KINDS.index(CAPTION_PAIR), paired, pictures + 2 * (pictures > 0))
            chosen = longest > self.size.capacity
            if index.kept is not None:
                chosen &= index.kept[low : low + AT_ONCE] != 0
            found.append(low + numpy.flatnonzero(chosen))
        return numpy.concatenate(found)

    def _tokens(self, number: int) -> float:
        """Tokens of a source as trained on, with prompts and turn markup: stored tokens times a ratio that some
        thousands of drawn documents give."""
        index, drawn = self.sources[number].index, self._some(number)
        if not len(drawn):
            return 0.0
        return tokens_of(index) * float(drawn[:, 6].sum()) / tokens_of(index, drawn[:, 1])

    def _some(self, number: int) -> numpy.ndarray:
        """Segments, before splitting, of the documents of a source: of a sample of a large one, drawn repeatedly from a
        small one."""
        size, generator = len(self.sources[number].index), seeded(f"{self.fingerprint}:some:{number}")
        if not size:
            return numpy.zeros((0, 7), numpy.int64)
        if size > COUNTED:
            documents = numpy.unique(generator.integers(0, size, COUNTED))
        else:
            documents = numpy.tile(numpy.arange(size), -(-COUNTED // size))
        kept = self.sources[number].index.kept
        if kept is not None:
            documents = documents[kept[documents] != 0]
        return self._draw_source(number, documents, generator)

    def _count(self, block: int) -> int:
        """Number of rows of a block."""
        _, _, rows = self._packed(block, seeded(f"{self.fingerprint}:{block}"))
        return rows

    def _packed(self, block: int, generator: numpy.random.Generator) -> tuple[numpy.ndarray, numpy.ndarray, int]:
        """Segments of a block, int64 [n, fields of RowSegment], in random order; the row of each, int64 [n]; number of
        rows."""
        segments = self._draw(block, generator)
        segments = segments[generator.permutation(len(segments))]
        return segments, *pack_mixed(segments[:, 6], self.size.capacity)

    def _planned(self, block: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Segments of a block, int64 [n, fields of RowSegment], row by row, and where each row starts, [rows + 1]."""
        if block not in self._blocks:
            generator = seeded(f"{self.fingerprint}:{block}")
            segments, row, rows = self._packed(block, generator)
            row = generator.permutation(rows)[row]
            order = argsort_small(row)
            starts = numpy.concatenate([[0], numpy.cumsum(numpy.bincount(row, minlength=rows))])
            for old in [number for number in self._blocks if number != block - 1]:
                del self._blocks[old]  # training reads forwards: the block before may still be in use
            self._blocks[block] = segments[order], starts
        return self._blocks[block]

    def _draw(self, block: int, generator: numpy.random.Generator) -> numpy.ndarray:
        """Segments of a block, int64 [n, fields of RowSegment]: task, text and prompt template are drawn."""
        found = [numpy.zeros((0, 7), numpy.int64)]
        for number, documents in enumerate(self.mixture.documents(block)):
            if len(documents):
                found.append(self._split(self._draw_source(number, documents, generator)))
        return numpy.concatenate(found)

    def _draw_source(self, number: int, documents: numpy.ndarray, generator: numpy.random.Generator) -> numpy.ndarray:
        index = self.sources[number].index
        kinds = index.kinds[documents]
        first = index.offsets[documents]
        counts = index.offsets[documents + 1] - first
        task = draw_tasks(generator, kinds, self.shares)
        drawn, whether_first = generator.random(len(documents)), generator.random(len(documents))
        wording = generator.integers(0, 2**16, len(documents))
        in_order = numpy.isin(task, ORDERED)
        has_picture = ~in_order & (task != TEXT)
        texts = numpy.where(has_picture, counts - 1, 1)  # a captioned picture is the first entry
        text = (drawn * texts).astype(numpy.int64)
        text[whether_first < self.shares.first_text] = 0
        text[in_order] = wording[in_order]
        entry = numpy.where(in_order, first, first + has_picture + text)
        captions, pictures = index.lengths[entry], index.lengths[first]
        shapes = index.layout[first] // SHAPE
        text_tokens, vision_tokens = document_lengths(self.tokenized, task, wording, captions, pictures, shapes)
        lengths = text_tokens + vision_tokens
        if in_order.any():
            lengths[in_order] = self._ordered_lengths(
                index, first[in_order], counts[in_order], task[in_order], text[in_order]
            )
        zeros = numpy.zeros_like(documents)
        return numpy.stack([zeros + number, documents, text, task, wording, zeros, lengths], axis=1)

    def _ordered_lengths(self, index: LengthIndex, first, counts, task, text) -> numpy.ndarray:
        starts = numpy.cumsum(counts) - counts
        entries = numpy.arange(counts.sum()) + numpy.repeat(first - starts, counts)
        return ordered_lengths(self.tokenized, task, text, counts, index.lengths[entries], index.layout[entries])

    def _split(self, segments: numpy.ndarray) -> numpy.ndarray:
        """Split documents longer than a row: text at the row's end, interleaved documents between images.

        What cannot be cut is left out: a captioned picture with its text, and a document with a picture larger than a row.
        """
        capacity = self.size.capacity
        long = segments[:, 6] > capacity
        if not long.any():
            return segments
        split = [segments[~long]]
        of_text = segments[long & (segments[:, 3] == TEXT)]
        counts = -(-of_text[:, 6] // capacity)
        stretches = numpy.repeat(of_text, counts, axis=0)
        within = numpy.arange(len(stretches)) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
        stretches[:, 5] = within * capacity
        stretches[:, 6] = numpy.minimum(stretches[:, 6] - stretches[:, 5], capacity)
        split.append(stretches)
        for line in segments[long & (segments[:, 3] != TEXT)].tolist():
            segment = RowSegment(*line)
            if segment.task not in ORDERED:
                continue
            ids, _ = build_ordered(self.tokenized, segment.task, segment.text, self.parts(segment))
            try:
                cuts = stretches_of(ids, self.tokenized.vocabulary, capacity, self.tokenized.sizes)
            except UserError:
                continue
            split.append(numpy.array([[*line[:5], *cut] for cut in cuts], dtype=numpy.int64))
        return numpy.concatenate(split)


def parts_of_index(
    index: LengthIndex, document: int, text_ids: numpy.ndarray | None = None, codes: numpy.ndarray | None = None
) -> list[Part]:
    """Parts of a document from the length index, without grids.

    text_ids, codes: those of all its texts and pictures, one after the other; None: zeros stand for them. ValueError if
    there are fewer than the index says.
    """
    first, end = (int(at) for at in index.offsets[document : document + 2])
    parts: list[Part] = []
    number = text = code = 0
    for length, entry in zip(index.lengths[first:end].tolist(), index.layout[first:end].tolist()):
        role = ROLES[entry // ROLE % len(ROLES)]
        if entry & PICTURE:
            parts.append(Part(role, _stretch(codes, code, length), None, (), entry // SHAPE))
            code += length
            continue
        wording = (number, _stretch(text_ids, text, length))
        number, text = number + 1, text + length
        if entry & WORDING:
            parts[-1] = Part(role, None, None, (*parts[-1].wordings, wording))
        else:
            parts.append(Part(role, None, None, (wording,)))
    return parts


def pair_of_index(
    index: LengthIndex,
    document: int,
    text: int,
    text_ids: numpy.ndarray | None = None,
    codes: numpy.ndarray | None = None,
) -> tuple[numpy.ndarray, numpy.ndarray, int]:
    """(ids [n] of text number `text`, codes [m] of the picture or [0], number of its grid) of a captioned picture or a text.

    What `parts_of_index` gives of such a document, in a fifth of the time. Arguments and errors are the same.
    """
    first, end = index.offsets[document : document + 2].tolist()
    lengths, entry = index.lengths[first:end].tolist(), int(index.layout[first])
    pictured = bool(entry & PICTURE)  # a captioned picture is the first entry
    picture = _stretch(codes, 0, lengths.pop(0) if pictured else 0)
    return _stretch(text_ids, sum(lengths[:text]), lengths[text]), picture, entry // SHAPE if pictured else 0


def _stretch(array: numpy.ndarray | None, start: int, length: int) -> numpy.ndarray:
    if array is None:
        return numpy.zeros(length, numpy.int64)
    if start + length > len(array):
        raise ValueError(f"its shard holds {len(array)} tokens where the length index has {start + length} or more")
    return array[start : start + length]
