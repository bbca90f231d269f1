"""N-gram counts of many sequences in bounded memory: each pass over the data counts one share of the contexts.

A window never crosses from one sequence into the next: windows of order n are n tokens of one text or one picture. An
n-gram is known by a 64-bit hash of its tokens; among 10^9 distinct ones a few are mistaken for others, which no digit
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy

GROUPS = 64  # sequences are split into so many groups, for standard errors
BLOCK = 4096  # tokens; a longer sequence counts as several
BATCH = 2**18  # tokens per batch
BYTES = 64  # bytes of memory per window while counting, at most
GOLDEN, FIRST, SECOND = (numpy.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
GROUP_BITS = numpy.uint64(GROUPS - 1)

Sequences = Callable[[], Iterable[numpy.ndarray]]  # starts a pass: token ids [tokens] of each sequence


@dataclass
class Order:
    """Counts of n-grams of one length n."""

    n: int
    windows: int = 0
    of_count: dict[int, int] = field(default_factory=dict)  # count -> number of n-grams with it
    of_prefix_count: dict[int, int] = field(default_factory=dict)
    information: numpy.ndarray = field(default_factory=lambda: numpy.zeros(GROUPS))  # bits, by group of sequences
    in_group: numpy.ndarray = field(default_factory=lambda: numpy.zeros(GROUPS))  # windows of each group

    def histogram(self, prefixes: bool = False) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Histogram (counts, times), input of the estimators."""
        found = sorted((self.of_prefix_count if prefixes else self.of_count).items())
        return numpy.array([c for c, _ in found], dtype=numpy.int64), numpy.array(
            [t for _, t in found], dtype=numpy.int64
        )

    def entropy(self) -> tuple[float, float]:
        """Plug-in conditional entropy in bits, and its standard error over groups of sequences."""
        total = self.windows
        mean = self.information.sum() / total
        rest = (self.information - mean * self.in_group)[self.in_group > 0]
        if len(rest) < 2:
            return float(mean), float("nan")
        return float(mean), float(numpy.sqrt(len(rest) / (len(rest) - 1) * (rest**2).sum()) / total)


def mixed(values: numpy.ndarray) -> numpy.ndarray:
    """uint64 -> uint64, every bit of the result depends on every bit (splitmix64; Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> numpy.uint64(30))) * FIRST
    values = (values ^ (values >> numpy.uint64(27))) * SECOND
    return values ^ (values >> numpy.uint64(31))


def share_of(number: int) -> float:
    """A sequence's hash in 0..1, by its number: sequences below f are a sample of share f, and samples are nested."""
    return int(mixed(numpy.array([number + 1], dtype=numpy.uint64) * GOLDEN)[0]) / 2**64


def batches(sequences: Iterable[numpy.ndarray], share: float) -> Iterator[tuple[numpy.ndarray, ...]]:
    """Batches of a sample's sequences -> (token ids, position in the sequence, group), each [tokens]."""
    parts: list[tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]] = []
    size = 0
    for number, tokens in enumerate(sequences):
        if not len(tokens) or share_of(number) >= share:
            continue
        place = numpy.arange(len(tokens))
        block = numpy.uint64(number) * numpy.uint64(2**20) + (place // BLOCK).astype(numpy.uint64)
        parts.append((tokens.astype(numpy.uint64), place, mixed(block * GOLDEN + GOLDEN) & GROUP_BITS))
        size += len(tokens)
        if size >= BATCH:
            yield tuple(map(numpy.concatenate, zip(*parts)))
            parts, size = [], 0
    if parts:
        yield tuple(map(numpy.concatenate, zip(*parts)))


def windows(
    batch: tuple[numpy.ndarray, ...], orders: int
) -> Iterator[tuple[int, numpy.ndarray, numpy.ndarray, numpy.ndarray]]:
    """N-gram windows: (n, hash of each n-gram with its group in the lowest bits, hash of its prefix, which windows are
    complete).

    For n = 1 .. orders.
    """
    tokens, place, group = batch
    added = (tokens + numpy.uint64(1)) * GOLDEN
    before = numpy.zeros(len(tokens), dtype=numpy.uint64)  # of the n - 1 tokens before each
    for n in range(1, orders + 1):
        whole = mixed(before + added)
        yield n, (whole & ~GROUP_BITS) | group, before, place >= n - 1
        before = numpy.concatenate((numpy.zeros(1, dtype=numpy.uint64), whole[:-1]))


class Table:
    """Table (n-gram and group) -> count and prefix, merged whenever enough windows have come."""

    def __init__(self):
        self.keys, self.prefixes = (numpy.zeros(0, dtype=numpy.uint64) for _ in range(2))
        self.counts = numpy.zeros(0, dtype=numpy.int64)
        self.waiting: list[tuple[numpy.ndarray, numpy.ndarray]] = []
        self.size = 0

    def add(self, keys: numpy.ndarray, prefixes: numpy.ndarray) -> None:
        """Add windows."""
        self.waiting.append((keys, prefixes))
        self.size += len(keys)
        if self.size > max(BATCH, len(self.keys)):
            self.merge()

    def merge(self) -> None:
        """Merge pending windows into the counts."""
        if not self.waiting:
            return
        keys, prefixes = (
            numpy.concatenate([old, *new]) for old, new in zip((self.keys, self.prefixes), zip(*self.waiting))
        )
        counts = numpy.concatenate((self.counts, numpy.ones(self.size, dtype=numpy.int64)))
        self.keys, first, inverse = numpy.unique(keys, return_index=True, return_inverse=True)
        self.prefixes = prefixes[first]
        self.counts = numpy.bincount(inverse, weights=counts, minlength=len(first)).astype(numpy.int64)
        self.waiting, self.size = [], 0

    def into(self, order: Order) -> None:
        """Add this table's counts to `order`.

        All windows of a prefix must be in one table (of an n-gram, if n is 1).
        """
        self.merge()
        if not len(self.keys):
            return
        grams, first, inverse = numpy.unique(self.keys & ~GROUP_BITS, return_index=True, return_inverse=True)
        counts = numpy.bincount(inverse, weights=self.counts).astype(numpy.int64)
        prefixes, of_gram = numpy.unique(self.prefixes[first], return_inverse=True)
        prefix_counts = numpy.bincount(of_gram, weights=counts).astype(numpy.int64)
        bits = -numpy.log2(counts) + (numpy.log2(prefix_counts)[of_gram] if order.n > 1 else 0.0)
        group = (self.keys & GROUP_BITS).astype(numpy.int64)
        order.information += numpy.bincount(group, weights=self.counts * bits[inverse], minlength=GROUPS)
        order.in_group += numpy.bincount(group, weights=self.counts, minlength=GROUPS)
        order.windows += int(counts.sum())
        for histogram, found in ((order.of_count, counts), (order.of_prefix_count, prefix_counts)):
            for count, times in zip(*numpy.unique(found, return_counts=True)):
                histogram[int(count)] = histogram.get(int(count), 0) + int(times)


def count(sequences: Sequences, orders: int, share: float = 1.0, passes: int = 1) -> list[Order]:
    """Count n-grams of n = 1 .. orders in the sample of share `share`.

    Each of `passes` passes counts its part of the contexts.
    """
    made = [Order(n) for n in range(1, orders + 1)]
    for number in range(passes):
        tables = [Table() for _ in made]
        for batch in batches(sequences(), share):
            for n, keys, prefixes, valid in windows(batch, orders):
                by = (keys | GROUP_BITS) if n == 1 else prefixes  # without a prefix, by the n-gram
                if passes > 1:
                    valid = valid & (mixed(by) % numpy.uint64(passes) == number)
                tables[n - 1].add(keys[valid], prefixes[valid])
        for table, order in zip(tables, made):
            table.into(order)
    for order in made[:1]:  # its only prefix is empty, and all windows have it
        order.information += order.in_group * numpy.log2(max(1, order.windows))
        order.of_prefix_count = {order.windows: 1}
    return [order for order in made if order.windows]


def passes_needed(tokens: int, orders: int, memory: float) -> int:
    """Number of passes that keep tables of `tokens` tokens below `memory` bytes."""
    return max(1, int(numpy.ceil(tokens * orders * BYTES / memory)))
