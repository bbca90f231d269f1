"""Data mixture: the order of documents of all sources, in blocks that mix the sources by the weights of a stage.

Every source is repeated without end. Each pass shuffles its shards, and the documents of each shard, so that no document
repeats within a pass, whatever the weights. Duplicates that are excluded are not part of a pass. A block takes the next
documents of each source, and is shuffled and packed by itself: rows in use at a time need few shards, and finding row n
needs the lengths of the blocks before it, not their documents.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy

from pretrain.system.errors import UserError
from tokenization.lengths import LengthIndex
from tokenization.sample import WORDING

BLOCK_DOCUMENTS = 1 << 18
BLOCK_TOKENS = 1 << 29


@dataclass(frozen=True)
class SourceLengths:
    """The length index of one dataset, and how much of it an epoch uses.

    weight: times that each document is used in an epoch; 0.3 uses each document in one of three epochs or so. share: if
    any source has one, an epoch has as many tokens as all sources together, of which this source gives that share.
    """

    fingerprint: str
    weight: float
    index: LengthIndex
    share: float = 0.0


@dataclass(frozen=True)
class MixtureStage:
    """A training stage before the epochs begin: a number of tokens, of which each source gives its share."""

    tokens: float
    shares: tuple[float, ...]


def seeded(purpose: str) -> numpy.random.Generator:
    """Random generator for a purpose, the same on every machine and in every process."""
    digest = hashlib.sha256(purpose.encode()).digest()
    return numpy.random.Generator(numpy.random.Philox(key=int.from_bytes(digest[:16], "little")))


class Mixture:
    """Blocks of a run by number: first those of the stages, then those of each epoch."""

    def __init__(
        self,
        sources: Sequence[SourceLengths],
        stages: Sequence[MixtureStage],
        purpose: str,
        count: Callable[[int], float] | None = None,
    ):
        """count: function from a source's number to the tokens of its documents, as shares count them; None: stored
        tokens."""
        self.sources, self.purpose = sources, purpose
        self._by_shard = [source.index.kept_by_shard() for source in sources]
        self._sizes = [int(counts.sum()) for counts in self._by_shard]
        self._stored = [sum(int(lengths.sum()) for lengths, _ in source.index.kept_entries()) for source in sources]
        if not any(self._sizes):
            raise UserError("the data sources hold no documents: check data.sources")
        self._stages, self._weights = [], [source.weight for source in sources]
        if stages or any(source.share for source in sources):
            count = count or (lambda number: tokens_of(sources[number].index))
            tokens = [count(number) for number in range(len(sources))]
            self._stages = [self._documents(stage.shares, stage.tokens, tokens) for stage in stages]
            if any(source.share for source in sources):
                takes = self._documents([source.share for source in sources], sum(tokens), tokens)
                self._weights = [take / max(size, 1) for take, size in zip(takes, self._sizes)]
        if sum(weight * size for weight, size in zip(self._weights, self._sizes)) < 1:
            raise UserError("an epoch of data.sources holds no documents: raise their weights")
        self._spans: list[tuple[int, list[int], list[int]]] = []  # first block, and the sources' positions at both ends
        self._pass: dict[int, tuple[str, numpy.ndarray, numpy.ndarray]] = {}  # of each source, the current pass

    def epoch_of(self, block: int) -> int:
        """Stage, or after all stages epoch, of a block."""
        while not self._spans or self._first_block(len(self._spans)) <= block:
            self._extend()
        return bisect_right(self._spans, block, key=lambda span: span[0]) - 1

    def documents(self, block: int) -> list[numpy.ndarray]:
        """Documents of each source in a block, int64 [n] each."""
        number = self.epoch_of(block)
        first, starts, ends = self._spans[number]
        blocks = self._first_block(number + 1) - first
        found = []
        for source, (start, end) in enumerate(zip(starts, ends)):
            low, high = (start + (end - start) * (block - first + more) // blocks for more in (0, 1))
            found.append(self._walk(source, low, high))
        return found

    def _documents(self, shares: Sequence[float], tokens: float, of_source: Sequence[float]) -> list[float]:
        """Number of documents of each source that have `tokens` tokens in these shares."""
        if len(shares) != len(self.sources) or not sum(shares) or any(s and not t for s, t in zip(shares, of_source)):
            raise UserError(
                f"shares {list(shares)} for {len(self.sources)} data sources: give one for each, 0 for an empty one"
            )
        whole = tokens / sum(shares)
        return [share * whole * size / max(has, 1) for share, size, has in zip(shares, self._sizes, of_source)]

    def _extend(self) -> None:
        """Plan one more stage or epoch."""
        number = len(self._spans)
        starts = self._spans[-1][2] if self._spans else [0] * len(self.sources)
        if number < len(self._stages):
            ends = [start + round(take) for start, take in zip(starts, self._stages[number])]
        else:
            base = [sum(round(stage[source]) for stage in self._stages) for source in range(len(self.sources))]
            epochs = number - len(self._stages) + 1
            ends = [at + int(w * n * epochs + 1e-6) for at, w, n in zip(base, self._weights, self._sizes)]
        first = self._first_block(number) if self._spans else 0
        self._spans.append((first, starts, ends))

    def _first_block(self, number: int) -> int:
        """First block of a stage or epoch, from the one before it."""
        if number < len(self._spans):
            return self._spans[number][0]
        first, starts, ends = self._spans[number - 1]
        takes = [end - start for start, end in zip(starts, ends)]
        tokens = sum(take * stored / max(size, 1) for take, stored, size in zip(takes, self._stored, self._sizes))
        return first + max(1, -(-sum(takes) // BLOCK_DOCUMENTS), int(-(-tokens // BLOCK_TOKENS)))

    def _walk(self, source: int, low: int, high: int) -> numpy.ndarray:
        """Documents `low` to `high` of the order of a source, over as many passes as needed."""
        size = self._sizes[source]
        found = [numpy.zeros(0, numpy.int64)]
        while low < high:
            number, within = divmod(low, size)
            stop = min(size, within + high - low)
            found.append(self._of_pass(source, number, within, stop))
            low += stop - within
        return numpy.concatenate(found)

    def _of_pass(self, source: int, number: int, low: int, high: int) -> numpy.ndarray:
        index, counts = self.sources[source].index, self._by_shard[source]
        purpose = f"{self.purpose}:{source}:{number}"
        if self._pass.get(source, ("",))[0] != purpose:
            order = seeded(purpose).permutation(len(counts))
            self._pass[source] = purpose, order, numpy.cumsum(counts[order])
        _, order, ends = self._pass[source]
        place = int(numpy.searchsorted(ends, low, side="right"))
        found = []
        while low < high:
            shard, end = int(order[place]), int(ends[place])
            documents = index.kept_of_shard(shard)
            count = len(documents)
            shuffled = documents[seeded(f"{purpose}:{shard}").permutation(count)]
            found.append(shuffled[low - (end - count) : min(high, end) - (end - count)])
            low, place = min(high, end), place + 1
        return numpy.concatenate(found)


def tokens_of(index: LengthIndex, documents: numpy.ndarray | None = None) -> float:
    """Stored tokens of these documents, or of all that are used, each once; for texts with several prompt templates
    their mean."""
    if documents is not None:
        first, counts = index.offsets[documents], index.offsets[documents + 1] - index.offsets[documents]
        within = numpy.arange(counts.sum()) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
        entries = numpy.repeat(first, counts) + within
        return _mean_tokens(index.lengths[entries], index.layout[entries])
    total = 0.0
    for lengths, layout in index.kept_entries():
        total += _mean_tokens(lengths, layout)
    return total


def _mean_tokens(lengths: numpy.ndarray, layout: numpy.ndarray) -> float:
    group = numpy.cumsum(layout & WORDING == 0) - 1
    return (
        float((numpy.bincount(group, lengths.astype(numpy.float64)) / numpy.bincount(group)).sum())
        if len(group)
        else 0.0
    )
