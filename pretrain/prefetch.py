"""Prefetch: shards of the next block are downloaded while rows of this one are trained on.

The rows of a block use all its shards, so the first rows of a block need all of them within a few steps. A thread of each
reading process therefore downloads them during the second half of the previous block. The processes of a node divide them
by file locks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy

from pretrain.rows import RowPlan
from pretrain.system.errors import TryAgain, UserError
from tokenization.shard_cache import ShardCache
from tokenization.shards import CodeDataset


class Prefetcher:
    """Prefetcher of one reading process; it is told of each row. Pickled without its thread."""

    def __init__(self, datasets: Sequence[CodeDataset], plan: RowPlan):
        self.datasets, self.plan = datasets, plan
        self._begun = -1  # last block that was prefetched
        self._thread: threading.Thread | None = None

    def note(self, index: int) -> None:
        """Note that row `index` is about to be read. Never blocks, and leaves errors to whoever reads the shards."""
        limits = [dataset.cache.limit for dataset in self.datasets if dataset.cache]
        if not limits:
            return
        block, share = self.plan.place_of(index)
        if share < 0.5 or block + 1 <= self._begun or (self._thread and self._thread.is_alive()):
            return
        self._begun = block + 1
        if any(limit and limit < bytes_needed(self.datasets, self.plan, block, block + 1) for limit in limits):
            return  # prefetching would evict shards in use
        shards = remote_shards(self.datasets, self.plan, block + 1)
        self._thread = threading.Thread(target=fetch, args=(shards,), name="fetch-ahead", daemon=True)
        self._thread.start()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_thread": None}


def remote_shards(datasets: Sequence[CodeDataset], plan: RowPlan, block: int) -> list[tuple[ShardCache, int]]:
    """Remote shards that rows of a block use."""
    found = []
    for dataset, documents in zip(datasets, plan.mixture.documents(block), strict=True):
        if dataset.cache:
            shards = numpy.searchsorted(dataset.lengths.shard_starts, documents, side="right") - 1
            found += [(dataset.cache, shard) for shard in numpy.unique(shards).tolist()]
    return found


def bytes_needed(datasets: Sequence[CodeDataset], plan: RowPlan, *blocks: int) -> int:
    """Bytes of the remote shards that rows of these blocks use."""
    shards = {found for block in blocks for found in remote_shards(datasets, plan, block)}
    return sum(cache.shards[shard]["bytes"] for cache, shard in shards)


def fetch(shards: Sequence[tuple[ShardCache, int]]) -> None:
    """Download shards that are missing and that no other process is downloading."""
    for cache, shard in shards:
        try:
            cache.fetch_ahead(shard)
        except (UserError, TryAgain):
            return
