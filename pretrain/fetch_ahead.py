"""Shards of the next block, fetched from a store while rows of this one are trained on.

A block's rows are dealt over all its shards, so the first rows of a block ask for all of them within a few steps, far more
than a step has time for. Hence a thread of each process that reads rows fetches them during the second half of the block
before. The processes of a node share them out by their locks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy

from model.errors import TryAgain, UserError
from pretrain.rows import RowPlan
from tokenization.shard_cache import ShardCache
from tokenization.shards import CodeDataset


class FetchAhead:
    """Of one process; it is pickled without its thread."""

    def __init__(self, datasets: Sequence[CodeDataset], plan: RowPlan):
        self.datasets, self.plan = datasets, plan
        self._begun = -1  # the last block that was fetched ahead
        self._thread: threading.Thread | None = None

    def note(self, index: int) -> None:
        """Row `index` is about to be read. Never waits, and leaves errors to whoever reads the shards."""
        caches = [dataset.cache for dataset in self.datasets]
        if not any(caches):
            return
        block, share = self.plan.place_of(index)
        if share < 0.5 or block + 1 <= self._begun or (self._thread and self._thread.is_alive()):
            return
        self._begun = block + 1
        here, coming = (list(self._shards(number)) for number in (block, block + 1))
        needed = sum(cache.shards[shard]["bytes"] for cache, shard in {*here, *coming})
        if any(cache.limit and cache.limit < needed for cache in caches if cache):
            return  # what would come would drive out what is in use
        self._thread = threading.Thread(target=fetch, args=(coming,), name="fetch-ahead", daemon=True)
        self._thread.start()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_thread": None}

    def _shards(self, block: int) -> Iterator[tuple[ShardCache, int]]:
        """What a block needs of datasets at URLs."""
        for dataset, documents in zip(self.datasets, self.plan.mixture.documents(block), strict=True):
            if dataset.cache:
                found = numpy.searchsorted(dataset.lengths.shard_starts, documents, side="right") - 1
                yield from ((dataset.cache, shard) for shard in numpy.unique(found).tolist())


def fetch(shards: Sequence[tuple[ShardCache, int]]) -> None:
    """Fetch what is not there and what nobody else is fetching."""
    for cache, shard in shards:
        try:
            cache.fetch_ahead(shard)
        except (UserError, TryAgain):
            return
