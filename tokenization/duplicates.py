"""Duplicate images across all files of a dataset; a worker only sees duplicates within its file.

Run when a dataset is finished, on the hashes in its parts. The rule is that of `filters.SeenPictures`: documents are taken
in order, and one with an image similar to that of an earlier kept document is dropped. The result equals a sequential
search, but whole arrays are compared: equal hashes by sorting; for nearly equal ones bits are divided into bands, some of
which must be equal, and candidates are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from math import comb
from pathlib import Path

import numpy as np

from tokenization.filters import COLOUR_STEPS
from tokenization.parts import PARTS, PartRecord
from tokenization.sample import PICTURE

AT_ONCE = 1 << 23
"""Pictures that are sorted at a time, about."""
LARGE = 256
"""Pictures whose hashes may be near each other: so many are told apart by colour before they are compared."""
MIX = 0x9E3779B97F4A7C15
SORTING, COMPARING = 100, 15
"""Nanoseconds that it takes to sort a hash, and to compare two; only their ratio matters."""
EVENNESS = 0.75
"""Bits of chance in a bit of a picture's hash, about: neighbours in a picture go alike."""


def repeats(output: Path, parts: Sequence[PartRecord], bits: int) -> np.ndarray:
    """Numbers int64 [n] of documents to drop as duplicates, in order, of a dataset of these parts.

    ValueError if the hashes of a part do not fit its documents.
    """
    count = sum(part.counts["pictures"] for part in parts)
    hashes, colours = np.empty(count, np.uint64), np.empty((count, 3), np.uint8)
    documents = np.empty(count, np.uint32)
    first = at = 0
    for part in parts:
        with np.load(output / PARTS / part.name / "lengths.npz") as found:
            pictures = np.cumsum(np.concatenate([[0], found["layout"] & PICTURE]))[found["offsets"]]
            end = at + int(pictures[-1])
            of_part = found["hashes"] if "hashes" in found else np.zeros((0, 4), np.uint64)
            if len(of_part) != end - at or end > count:
                raise ValueError(f"{part.name} has {len(of_part):,} picture hashes for {end - at:,} pictures")
            hashes[at:end], colours[at:end] = of_part[:, 0], of_part[:, 1:]
            documents[at:end] = np.repeat(np.arange(first, first + len(pictures) - 1), np.diff(pictures))
        first, at = first + part.counts["documents"], end
    return seen_before(hashes[:at], colours[:at], documents[:at], bits)


def seen_before(hashes: np.ndarray, colours: np.ndarray, documents: np.ndarray, bits: int) -> np.ndarray:
    """Documents int64 whose images repeat those of an earlier kept document. Images have hashes uint64 [n] and mean
    colours uint8 [n, 3], in order, and a document each, [n].

    In rounds: of documents that are undecided, those without a look-alike before them are taken, and what looks like
    them goes. A second round is for what looks like something that went, and so on.
    """
    gone = [np.zeros(0, np.int64)]
    while len(documents):
        first = earliest_equal(hashes, colours)
        values = np.flatnonzero(first == np.arange(len(first)))
        earliest = documents[values]  # first document with this value, or a similar one
        alike = np.zeros(len(values), bool)
        for one, other in look_alikes(hashes[values], colours[values], bits):
            np.minimum.at(earliest, one, documents[values[other]])
            np.minimum.at(earliest, other, documents[values[one]])
            alike[one] = alike[other] = True
        place = np.empty(len(first), first.dtype)  # index of each picture's value
        place[values] = np.arange(len(values))
        place = place[first]
        later = _of_whole_documents(documents > earliest[place], documents)
        if not later.any():
            break
        taken = np.zeros(len(values), bool)
        taken[place[~later]] = True
        reached = taken.copy()
        alike = np.flatnonzero(alike)
        for one, other in look_alikes(hashes[values[alike]], colours[values[alike]], bits):
            one, other = alike[one], alike[other]
            reached[one] |= taken[other]
            reached[other] |= taken[one]
        goes = later & _of_whole_documents(later & reached[place], documents)
        gone.append(np.unique(documents[goes]).astype(np.int64))
        left = later & ~goes
        hashes, colours, documents = hashes[left], colours[left], documents[left]
    return np.sort(np.concatenate(gone))


def _of_whole_documents(flags: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Whether any image of an image's document is flagged, bool [n]."""
    starts = np.flatnonzero(np.concatenate([[True], documents[1:] != documents[:-1]]))
    return np.repeat(np.logical_or.reduceat(flags, starts), np.diff(np.append(starts, len(documents))))


def earliest_equal(hashes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """First image with the same hash and colour, uint32 [n]."""
    first = np.arange(len(hashes), dtype=np.uint32)
    for order in shared(hashes):
        key = colours[order].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        by_value = np.lexsort((order, key, hashes[order]))
        order, key = order[by_value], key[by_value]
        new = np.ones(len(order), bool)
        new[1:] = (key[1:] != key[:-1]) | (hashes[order[1:]] != hashes[order[:-1]])
        first[order] = order[new][np.cumsum(new) - 1]
    return first


def look_alikes(hashes: np.ndarray, colours: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of near-duplicate images, as two arrays of their numbers, in chunks; some pairs more than once."""
    for mask in masks(bits, len(hashes)):
        for order in shared(hashes & mask):
            key = hashes[order] & mask
            group = np.cumsum(np.concatenate([[0], key[1:] != key[:-1]]))[: len(key)]  # numbers of the keys
            large = np.bincount(group)[group] > LARGE
            for within, of in ((order[~large], group[~large]), *by_colour(order[large], group[large], colours)):
                for one, other in neighbours(of):
                    one, other = within[one], within[other]
                    near = np.bitwise_count(hashes[one] ^ hashes[other]) <= bits
                    one, other = one[near], other[near]
                    close = (np.abs(colours[one].astype(np.int16) - colours[other]) <= COLOUR_STEPS).all(axis=1)
                    if close.any():
                        yield one[close], other[close]


def by_colour(order: np.ndarray, group: np.ndarray, colours: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Split large groups of images by colour, eight times with shifts: images with close colours share a group at least
    once.

    Each time a colour is cut into cells of another grid. Two grids for each of red, green and blue are half a cell apart,
    and half a cell is more than close colours are.
    """
    half = COLOUR_STEPS + 1
    cells = 256 // (2 * half) + 2
    for shifts in product((0, half), repeat=3) if len(order) else ():
        red, green, blue = (colours[order].astype(np.int64) + shifts).T // (2 * half)
        cell = ((group * cells + red) * cells + green) * cells + blue
        by_cell = np.argsort(cell)
        yield order[by_cell], cell[by_cell]


def neighbours(group: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs within groups, of positions [n] sorted by group: those 1 apart, then those 2 apart, ..."""
    at, apart = np.arange(len(group)), 0
    while len(at):
        apart += 1
        at = at[: np.searchsorted(at, len(group) - apart)]
        at = at[group[at] == group[at + apart]]
        yield at, at + apart


def masks(bits: int, count: int) -> list[np.uint64]:
    """Masks of 64 bits: any two of `count` hashes that differ in at most `bits` bits agree under at least one of them.

    The bits are dealt into bands, of which so many differences can spoil at most `bits`; each mask is a choice of that
    many bands that may be spoilt. With more bands masks are longer, so that fewer hashes that are not alike agree by
    chance, but there are more of them to sort by: the cheapest number is taken.
    """

    def cost(bands: int) -> float:
        agreeing = max(64 - -(-64 // bands) * bits, 0) if bands else 0
        return comb(bands, bits) * (count * SORTING + count**2 / 2 / 2 ** (EVENNESS * agreeing) * COMPARING)

    bands = min(range(bits, bits + 9), key=cost)  # as many bands as bits: one empty mask, which compares all with all
    bands_of = [sum(1 << bit for bit in range(band, 64, bands)) for band in range(bands)]
    return [np.uint64(sum(chosen)) for chosen in combinations(bands_of, bands - bits)]


def shared(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of all repeated keys, grouped by key, in chunks of about AT_ONCE keys."""
    stretches = len(keys) // AT_ONCE + 1
    stretch = None if stretches == 1 else (keys * np.uint64(MIX) >> np.uint64(32)) % np.uint64(stretches)
    for number in range(stretches):
        order = np.arange(len(keys)) if stretch is None else np.flatnonzero(stretch == number)
        order = order[np.argsort(keys[order])]
        ordered = keys[order]
        same = ordered[1:] == ordered[:-1]
        again = np.zeros(len(order), bool)
        again[1:] |= same
        again[:-1] |= same
        yield order[again]
