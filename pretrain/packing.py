"""Sequence packing: segments of many lengths into rows of one capacity; random order first, best fit for the rest.

Best fit alone puts equal lengths together, and a row of equally long captions, or of pictures only, is no fair sample of the
data. So consecutive segments of the random order form a bundle that nearly fills a row, and best fit fills the gaps.

Best fit works on the histogram of the lengths instead of single segments. The longest remaining segment opens a row, which
takes the longest that still fits, again and again. While there are enough segments of these lengths the next row has the
same lengths; so a row's lengths are found once and repeated. The work depends on the number of different lengths, hardly on
the number of segments.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy

GAP = 1.0  # a bundle leaves room for so many segments of mean length in a row, at least; but it may fill half of a row


def pack_mixed(lengths: numpy.ndarray, capacity: int) -> tuple[numpy.ndarray, int]:
    """Pack segments of lengths 1 to `capacity`, int [segments], in random order, into rows of at most `capacity` ->
    (row of each segment, int64 [segments]; number of rows)."""
    item = bundle(lengths, capacity)
    items = numpy.bincount(item, lengths).astype(numpy.int64) if len(lengths) else lengths
    packing = pack(items, capacity)
    return packing.row_of_pieces(items)[item], packing.row_count


def bundle(lengths: numpy.ndarray, capacity: int) -> numpy.ndarray:
    """Bundle of each segment, int64 [segments]: neighbours until the next one would leave too small a gap.

    There are as many bundles as there are full rows. The pieces after them are one by one, to fill the gaps.
    """
    total = int(lengths.sum())
    if total < 2 * capacity:
        return numpy.arange(len(lengths))
    mean = float(lengths @ lengths) / total  # segment of each token
    limit = max(capacity - int(GAP * mean), capacity // 2)
    ends = numpy.cumsum(lengths, dtype=numpy.int64)
    after = numpy.searchsorted(ends, ends - lengths + limit, side="right")  # first segment after a bundle from here
    after = numpy.maximum(after, numpy.arange(1, len(lengths) + 1)).tolist()
    starts: list[int] = []
    piece = 0
    while piece < len(after) and len(starts) < total // capacity:
        starts.append(piece)
        piece = after[piece]
    begins = numpy.zeros(len(lengths), dtype=numpy.int64)
    begins[starts] = 1
    begins[piece:] = 1
    return numpy.cumsum(begins) - 1


@dataclass(frozen=True)
class Packing:
    """Runs of equal rows: run i makes rows `first_row[i]` : `first_row[i] + rows[i]`, each with `each[i]` segments of
    one length, which are the next ones of that length from `piece[i]` on, counted in the order of decreasing length.
    Several runs fill the same rows."""

    first_row: numpy.ndarray
    rows: numpy.ndarray
    each: numpy.ndarray
    piece: numpy.ndarray
    row_count: int

    def row_of_pieces(self, lengths: numpy.ndarray) -> numpy.ndarray:
        """Row of every segment, int64 [segments], in the order of `lengths` as it was packed."""
        counts = self.rows * self.each
        starts = numpy.cumsum(counts) - counts
        within = numpy.arange(counts.sum()) - numpy.repeat(starts, counts)
        rows = numpy.repeat(self.first_row, counts) + within // numpy.repeat(self.each, counts)
        places = numpy.repeat(self.piece, counts) + within
        found = numpy.empty_like(rows)
        found[decreasing(lengths)[places]] = rows
        return found


def decreasing(lengths: numpy.ndarray) -> numpy.ndarray:
    """Stable argsort of lengths, descending."""
    return argsort_small(lengths.max(initial=0) - lengths)


def argsort_small(numbers: numpy.ndarray) -> numpy.ndarray:
    """Stable argsort of small non-negative integers, ascending."""
    narrow = numpy.uint16 if numbers.max(initial=0) < 1 << 16 else numpy.int64  # radix sort, much faster
    return numpy.argsort(numbers.astype(narrow), kind="stable")


def pack(lengths: numpy.ndarray, capacity: int) -> Packing:
    """Pack segments of lengths 1 to `capacity`, int [segments], into rows of at most `capacity` by best fit."""
    histogram = numpy.bincount(lengths)
    active = numpy.flatnonzero(histogram).tolist()  # remaining lengths, ascending
    ends = numpy.cumsum(histogram[::-1])[::-1]  # segments of at least this length
    left = dict(zip(active, histogram[active].tolist(), strict=True))
    heads = dict(zip(active, (ends[active] - histogram[active]).tolist(), strict=True))
    runs: list[tuple[int, int, int, int]] = []
    row = 0
    while active:
        room, place, pattern, times = capacity, len(active) - 1, [], 1 << 62
        while place >= 0:
            length = active[place]
            count = left[length]
            each = room // length
            if each > count:
                each = count
            pattern.append((length, each))
            if count // each < times:
                times = count // each
            room -= each * length
            limit = length - 1 if room >= length else room
            if limit < active[0]:
                break
            place = bisect_right(active, limit, 0, place) - 1
        for length, each in pattern:
            runs.append((row, times, each, heads[length]))
            taken = times * each
            heads[length] += taken
            if left[length] == taken:
                del active[bisect_right(active, length) - 1]
            left[length] -= taken
        row += times
    columns = numpy.array(runs, dtype=numpy.int64).reshape(-1, 4).T
    return Packing(columns[0], columns[1], columns[2], columns[3], row)
