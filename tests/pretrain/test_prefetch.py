"""What a stream of rows asks of a store: each shard about once an epoch, few at a time, and before they are needed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy
import pytest

from pretrain import mixture
from pretrain.loader import RowDataset, RowSource, rows_from
from pretrain.rows import RowPlan, RowSize, SourceLengths
from pretrain.system.errors import UserError
from tests.pretrain.test_rows import PROMPTS, SHARES, plan, source
from tests.tokenization.store import Request, Store, serving
from tests.tokenization.test_shards import document, write
from tokenization.shard_cache import GIB, Cache

SHARD, BLOCK = 2, 16  # documents


def in_shards(lengths: SourceLengths, shards: int) -> SourceLengths:
    starts = numpy.linspace(0, len(lengths.index), shards + 1).astype(numpy.int64)
    return replace(lengths, index=replace(lengths.index, shard_starts=starts))


def fetches(planned: RowPlan, rows: range, each: int, room: int) -> tuple[int, int, int]:
    """Read these rows with a cache that has room for so many shards of `each` documents, of which those go that were not
    used for longest -> (shards that were fetched, different ones, the most that 50 rows in a row touch)."""
    cache: OrderedDict = OrderedDict()
    fetched, most, touched = 0, 0, []
    for index in rows:
        shards = [(piece.source, piece.document // each) for piece in planned.row(index)]
        for shard in shards:
            fetched += shard not in cache
            cache[shard] = None
            cache.move_to_end(shard)
            if len(cache) > room:
                cache.popitem(last=False)
        touched.append(set(shards))
        most = max(most, len(set().union(*touched[-50:])))
    return fetched, len(set().union(*touched)), most


def test_a_stream_needs_the_shards_of_two_blocks(monkeypatch: pytest.MonkeyPatch):
    """Blocks of 12 to 14 shards, of 100 in all: with room for two blocks each shard is fetched once in an epoch."""
    monkeypatch.setattr(mixture, "BLOCK_DOCUMENTS", 300)
    sources = [in_shards(source(2000, 0, "a"), 80), in_shards(source(500, 1, "b"), 20)]
    planned = plan(sources)
    epoch = range(next(index for index in range(10_000) if planned.epoch_of(index) == 1))
    assert planned.block_of(epoch[-1]) == 8
    fetched, different, most = fetches(planned, epoch, 25, room=28)
    assert fetched == different == 100 and most <= 28
    fetched, _, _ = fetches(planned, epoch, 25, room=14)  # one block: those that two blocks share may come twice
    assert 100 <= fetched <= 100 + 2 * 8
    fetched, _, _ = fetches(planned, epoch, 25, room=7)
    assert fetched > 500


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A dataset of 32 shards."""
    (tmp_path / "store").mkdir()
    write(tmp_path / "store/data", [document(number, [[number + 1] * 9], []) for number in range(64)], per_part=SHARD)
    with serving(tmp_path / "store") as store:
        yield store


def opened(store: Store, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> tuple[RowDataset, range]:
    """The dataset's rows, and those of the first block."""
    monkeypatch.setattr(mixture, "BLOCK_DOCUMENTS", BLOCK)
    rows = RowDataset([RowSource(f"{store.url}/data", cache=cache)], PROMPTS, SHARES, RowSize(24, 4), seed=0)
    return rows, range(next(index for index in range(100) if rows.plan.block_of(index) == 1))


def test_the_next_block_is_fetched_in_the_second_half_of_this_one(store, tmp_path, monkeypatch):
    rows, first = opened(store, Cache(tmp_path / "cache"), monkeypatch)
    stream = rows_from(rows, 0, 0, 1, workers=0)  # it reads one row ahead
    for _ in range(len(first) // 2 - 1):
        next(stream)
    assert 0 < len(store.shards_asked()) <= BLOCK // SHARD
    for _ in range(len(first) // 2):
        next(stream)
    end = time.monotonic() + 30
    while len(store.shards_asked()) < 2 * BLOCK // SHARD and time.monotonic() < end:
        time.sleep(0.01)
    assert store.shards_asked() == [1] * (2 * BLOCK // SHARD)  # and no row of the next block was read
    asked = dict(store.asked)
    for _ in range(len(first) // 3):
        next(stream)
    assert store.asked == asked
    again, _ = opened(store, Cache(tmp_path / "other"), monkeypatch)
    store.asked.clear()
    again[first[-1]]
    time.sleep(0.3)
    assert len(store.shards_asked()) <= 2  # a single row fetches what it needs, and no more


def test_it_does_not_drive_out_what_is_in_use(store, tmp_path, monkeypatch):
    """With room for less than two blocks every shard comes when it is needed."""
    size = sum(path.stat().st_size for path in store.folder.glob("data/parts/*/*.mds"))
    rows, first = opened(store, Cache(tmp_path / "cache", size * 3 / 8 / GIB), monkeypatch)
    list(islice(rows_from(rows, 0, 0, 1, workers=0), len(first) - 1))
    time.sleep(0.3)
    assert store.shards_asked() == [1] * (BLOCK // SHARD)


def test_what_cannot_be_fetched_ahead_is_told_when_it_is_needed(store, tmp_path, monkeypatch):
    rows, first = opened(store, Cache(tmp_path / "cache"), monkeypatch)
    shards = {piece.document // SHARD for index in first for piece in rows.plan.row(index)}
    needed = {f"data/{rows.datasets[0].manifest['shards'][shard]['file']}" for shard in shards}
    gone: list[str] = []

    def missing(request: Request) -> bool:
        if request.name in needed:
            return False
        gone.append(request.name)
        request.answer(None)
        return True

    store.fault = missing
    stream = rows_from(rows, 0, 0, 1, workers=0)
    for _ in first[:-1]:
        next(stream)
    end = time.monotonic() + 30
    while not gone and time.monotonic() < end:
        time.sleep(0.01)
    assert len(gone) == 1  # one is enough to leave it
    with pytest.raises(UserError, match="is not there"):
        list(islice(stream, 2))
