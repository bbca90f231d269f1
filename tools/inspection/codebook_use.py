"""Statistics of code shards: tokens per source from the length index, and codebook usage from samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from tokenization.shards import CodeDataset


def sources_of(dataset: CodeDataset) -> Iterator[tuple[str, int, int]]:
    """Name, first document and end of each source."""
    first = 0
    for name, count in dataset.manifest["sources"].items():
        yield name, first, first + count
        first += count


def token_statistics(dataset: CodeDataset) -> list[tuple[Any, ...]]:
    """Per source: name, documents, images, image tokens, texts, text tokens, and median, 99th percentile and maximum of
    the tokens of a document."""
    from tokenization.sample import PICTURE

    lines = []
    index = dataset.lengths
    for name, low, high in sources_of(dataset):
        first, end = int(index.offsets[low]), int(index.offsets[high])
        lengths = index.lengths[first:end].astype(numpy.int64)
        picture = index.layout[first:end] & PICTURE != 0
        ends = numpy.concatenate([[0], numpy.cumsum(lengths)])[index.offsets[low : high + 1] - first]
        documents = numpy.diff(ends) if high > low else numpy.zeros(1, numpy.int64)
        middle, near_most, most = (int(value) for value in numpy.percentile(documents, (50, 99, 100)))
        lines.append(
            (
                name,
                high - low,
                int(picture.sum()),
                int(lengths[picture].sum()),
                int((~picture).sum()),
                int(lengths[~picture].sum()),
                middle,
                near_most,
                most,
            )
        )
    return lines


def shape_statistics(dataset: CodeDataset) -> list[tuple[str, int, int]]:
    """Size words, images and codes of each shape of a dataset; empty where all are squares."""
    from model.shapes import framing_of, size_word
    from tokenization.sample import PICTURE, SHAPE

    grids = framing_of(dataset.manifest["vq"]).grids
    if len(grids) == 1:
        return []
    counts = numpy.zeros(len(grids), numpy.int64)
    for _, layout in dataset.lengths.kept_entries():
        counts += numpy.bincount(layout[layout & PICTURE != 0] // SHAPE, minlength=len(grids))
    return [(size_word(grid), int(count), grid[0] * grid[1]) for grid, count in zip(grids, counts, strict=True)]


def codebook_statistics(dataset: CodeDataset, documents: int) -> list[tuple[Any, ...]]:
    """Per source, over at most so many documents spread evenly: name, images, codes used, perplexity of the codes, and
    bits of a code given 0, 1 and 2 codes before it in its row.

    The entropies are plug-in estimates, too low where contexts are seen rarely: compare sources of equal size.
    """
    lines = []
    size = dataset.manifest["vq"]["codebook_size"]
    for name, low, high in sources_of(dataset):
        count = min(documents, high - low)
        rows = []
        pictures = 0
        for place in range(count):
            sample = dataset[low + place * (high - low) // count]
            at = 0
            for height, width in sample["grids"].reshape(-1, 2).tolist():
                rows += list(sample["codes"][at : at + height * width].astype(numpy.int64).reshape(height, width))
                at += height * width
                pictures += 1
        if not pictures:
            continue
        bits = [conditional_entropy(rows, before, size) for before in range(3)]
        used = len(numpy.unique(numpy.concatenate(rows)))
        lines.append((name, pictures, used, float(2 ** bits[0]), *bits))
    return lines


def conditional_entropy(rows: list[numpy.ndarray], before: int, size: int) -> float:
    """Conditional entropy in bits of a code given the `before` ones to its left, from counts; shorter rows do not
    count."""
    grams = [numpy.lib.stride_tricks.sliding_window_view(row, before + 1) for row in rows if len(row) > before]
    if not grams:
        return 0.0
    table = numpy.concatenate(grams)
    key, context = table[:, -1], numpy.zeros(len(table), numpy.int64)
    for column in range(before):
        context = context * size + table[:, column]
    _, joint = numpy.unique(context * size + key, return_counts=True)
    _, alone = numpy.unique(context, return_counts=True)
    return float(_entropy(joint) - _entropy(alone))


def _entropy(counts: numpy.ndarray) -> float:
    share = counts / counts.sum()
    return float(-(share * numpy.log2(share)).sum())
