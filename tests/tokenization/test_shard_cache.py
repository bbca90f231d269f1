"""A dataset at a URL: the same documents, a shard fetched once by all processes, never more on disk than allowed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pretrain.system.errors import TryAgain, UserError
from tests.tokenization.store import Request, Store, open_and_verify, serving, short_pauses, unavailable
from tests.tokenization.test_shards import DOCUMENTS, document, flip, same, write
from tokenization import remote
from tokenization.shard_cache import GIB, Cache
from tokenization.shards import open_dataset

MANY = [document(number, [[number]], [(4 + number, 5)]) for number in range(24)]  # two a shard, of growing size


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(remote, "PAUSES", remote.PAUSES)
    short_pauses()
    (tmp_path / "store").mkdir()
    write(tmp_path / "store/data", DOCUMENTS)
    with serving(tmp_path / "store") as store:
        yield store


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with twelve shards."""
    folder = tmp_path_factory.mktemp("many")
    write(folder / "data", MANY)
    with serving(folder) as store:
        yield store


def shards_in(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/shards/*.mds"))


def bytes_in(cache: Path) -> int:
    """Bytes of shards, and of what is on its way to be one."""
    return sum(path.stat().st_size for path in cache.glob("*/shards/*"))


def test_a_shard_is_fetched_when_one_of_its_documents_is_read(store: Store, tmp_path: Path):
    opened = open_dataset(f"{store.url}/data/", Cache(tmp_path / "cache"))
    assert len(opened) == len(DOCUMENTS) and opened.fingerprint == open_dataset(store.folder / "data").fingerprint
    assert store.shards_asked() == [] and opened.lengths.shard_starts.tolist() == [0, 2, 4, 6]
    assert same(opened[3], DOCUMENTS[3]) and same(opened[2], DOCUMENTS[2])
    assert store.asked["data/parts/000000.0001/shard.00000.mds"] == 1 and len(store.shards_asked()) == 1
    assert all(same(opened[number], expected) for number, expected in enumerate(DOCUMENTS))
    assert store.shards_asked() == [1, 1, 1]
    assert not list(tmp_path.glob("cache/**/*.tmp"))
    again = open_dataset(f"{store.url}/data", Cache(tmp_path / "cache"))
    assert all(same(found, expected) for found, expected in zip(again, DOCUMENTS, strict=True))
    again.verify()
    assert store.shards_asked() == [1, 1, 1] and store.asked["data/lengths/offsets.npy"] == 1


def test_it_goes_through_pickle_and_loader_workers(store: Store, tmp_path: Path):
    opened = open_dataset(f"{store.url}/data", Cache(tmp_path / "cache"))
    assert same(pickle.loads(pickle.dumps(opened))[4], DOCUMENTS[4])
    loader = DataLoader(opened, batch_size=None, num_workers=2)
    assert [found["id"] for found in loader] == [expected.id for expected in DOCUMENTS]
    assert store.shards_asked() == [1, 1, 1]


def test_a_url_needs_a_cache_and_a_cache_a_disk(store: Store, tmp_path: Path):
    with pytest.raises(UserError, match=rf"{store.url}/data: a URL is read through a cache.*data\.cache"):
        open_dataset(f"{store.url}/data")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/file.*: cannot be used as a cache"):
        open_dataset(f"{store.url}/data", Cache(tmp_path / "file/cache"))
    with pytest.raises(UserError, match="only a folder is read here, no URL"):
        open_dataset(Path(f"{store.url}/data"))
    with pytest.raises(UserError, match=f"{store.url}/nowhere/manifest.json: is not there"):
        open_dataset(f"{store.url}/nowhere", Cache(tmp_path / "cache"))


def test_processes_that_start_at_once_fetch_each_file_once(many: Store, tmp_path: Path):
    context = multiprocessing.get_context(
        "spawn"
    )  # a forkserver begun here would lack what other tests' workers import
    arguments = (f"{many.url}/data", tmp_path / "cache", context.Barrier(3))
    many.asked.clear()
    readers = [context.Process(target=open_and_verify, args=arguments) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0, 0]
    assert many.shards_asked() == [1] * 12
    assert [count for name, count in many.asked.items() if "lengths" in name or "index" in name] == [1] * 5


def test_a_killed_fetch_leaves_a_file_that_the_next_one_replaces(store: Store, tmp_path: Path):
    half, go_on = threading.Event(), threading.Event()

    def hold(request: Request) -> bool:
        if not request.name.endswith(".mds") or go_on.is_set():
            return False
        content = (store.folder / request.name).read_bytes()
        request.answer(content[:50], promised=len(content))
        request.wfile.flush()
        half.set()
        return go_on.wait(60)

    store.fault = hold
    killed = multiprocessing.get_context("spawn").Process(
        target=open_and_verify, args=(f"{store.url}/data", tmp_path / "cache")
    )
    killed.start()
    assert half.wait(60)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    go_on.set()
    assert shards_in(tmp_path / "cache") == [] and len(list(tmp_path.glob("cache/*/shards/.*.tmp"))) == 1
    opened = open_dataset(f"{store.url}/data", Cache(tmp_path / "cache"))
    assert all(same(found, expected) for found, expected in zip(opened, DOCUMENTS, strict=True))
    assert len(shards_in(tmp_path / "cache")) == 3 and not list(tmp_path.glob("cache/*/shards/.*.tmp"))


def test_what_a_killed_fetch_left_counts_and_makes_room(many: Store, tmp_path: Path):
    cache = Cache(tmp_path / "cache", limit=400 / GIB)
    opened = open_dataset(f"{many.url}/data", cache)
    left = opened.folder / "shards/.000005.390.mds.elsewhere-1.tmp"
    left.write_bytes(b"half of it")
    assert same(opened[0], MANY[0])
    assert not left.exists()


def test_a_file_of_the_cache_that_is_damaged_is_fetched_again(store: Store, tmp_path: Path):
    cache = Cache(tmp_path / "cache")
    list(open_dataset(f"{store.url}/data", cache))
    flip(shards_in(cache.folder)[1], 300)
    os.truncate(shards_in(cache.folder)[2], 0)
    flip(next(cache.folder.glob("*/lengths/offsets.npy")), -1)
    opened = open_dataset(f"{store.url}/data", cache)
    assert all(same(found, expected) for found, expected in zip(opened, DOCUMENTS, strict=True))
    assert sorted(store.shards_asked()) == [1, 2, 2] and store.asked["data/lengths/offsets.npy"] == 2


def test_damage_at_the_store_is_named_by_its_url(store: Store, tmp_path: Path):
    name = "data/parts/000000.0001/shard.00000.mds"
    flip(store.folder / name, 300)
    opened = open_dataset(f"{store.url}/data", Cache(tmp_path / "cache"))
    assert same(opened[0], DOCUMENTS[0])
    with pytest.raises(UserError, match=f"^{store.url}/{name}: is not what the manifest says") as error:
        opened[2]
    assert "\n" not in str(error.value) and len(shards_in(tmp_path / "cache")) == 1
    (store.folder / name).unlink()
    with pytest.raises(UserError, match=f"^{store.url}/{name}: is not there"):
        opened[2]
    store.fault = unavailable
    with pytest.raises(TryAgain, match=f"^{store.url}/{name}: the store does not answer"):
        opened[3]
    store.fault = None
    assert same(opened[5], DOCUMENTS[5]) and not list(tmp_path.glob("cache/**/*.tmp"))


def test_manifests_at_a_url_that_cannot_be_used(store: Store, tmp_path: Path):
    path = store.folder / "data/manifest.json"
    sound = json.loads(path.read_text())
    outside = [entry | {"file": "../../outside.npy"} for entry in sound["lengths"]]
    cases = {
        "damaged": "{",
        "format version 9": json.dumps(sound | {"format_version": 9}),
        "names '../../outside.npy'": json.dumps(sound | {"lengths": outside}),
    }
    for message, text in cases.items():
        path.write_text(text)
        with pytest.raises(UserError, match=f"^{store.url}/data/manifest.json: .*{message}"):
            open_dataset(f"{store.url}/data", Cache(tmp_path / "cache"))


def test_a_changed_dataset_meets_no_old_shard(store: Store, tmp_path: Path):
    cache = Cache(tmp_path / "cache")
    before = open_dataset(f"{store.url}/data", cache)
    unread = open_dataset(f"{store.url}/data", Cache(tmp_path / "other"))
    assert same(before[0], DOCUMENTS[0])
    shutil.rmtree(store.folder / "data")
    changed = [document(7, [[7]], [(2, 3)]), *DOCUMENTS[1:]]
    write(store.folder / "data", changed)
    after = open_dataset(f"{store.url}/data", cache)
    assert after.fingerprint != before.fingerprint and same(after[0], changed[0]) and same(before[0], DOCUMENTS[0])
    with pytest.raises(UserError, match="is not what the manifest says"):
        unread[0]


@settings(max_examples=25, deadline=None)
@given(
    limit=st.integers(1, 6000),
    reads=st.lists(st.tuples(st.integers(0, 1), st.integers(0, len(MANY) - 1)), min_size=1, max_size=30),
)
def test_any_order_of_reads_and_any_limit(many: Store, tmp_path_factory, limit: int, reads: list[tuple[int, int]]):
    """Two readers of one cache: always the right bytes, never more than the limit and one shard on disk."""
    cache = Cache(tmp_path_factory.mktemp("limited"), limit / GIB)
    readers = [open_dataset(f"{many.url}/data", cache) for _ in range(2)]
    largest = max(entry["bytes"] for entry in readers[0].manifest["shards"])
    for reader, number in reads:
        assert same(readers[reader][number], MANY[number])
        assert bytes_in(cache.folder) <= max(limit, largest)
    shutil.rmtree(cache.folder)


def test_the_shard_that_was_not_used_for_longest_goes(many: Store, tmp_path: Path):
    opened = open_dataset(f"{many.url}/data", Cache(tmp_path / "cache"))
    sizes = [entry["bytes"] for entry in opened.manifest["shards"]]
    limited = open_dataset(f"{many.url}/data", Cache(tmp_path / "cache", sum(sizes[:4]) / GIB))
    for shard in (0, 1, 2, 0, 3):
        assert same(limited[2 * shard], MANY[2 * shard])
    many.asked.clear()
    assert same(limited[8], MANY[8])  # shard 4 is larger than shard 1: two must go
    assert [int(path.name.split(".")[0]) for path in shards_in(tmp_path / "cache")] == [0, 3, 4]
    assert same(limited[0], MANY[0]) and many.shards_asked() == [1]


def test_threads_that_need_more_than_the_limit_get_on(many: Store, tmp_path: Path):
    """Each removes what the other one reads, again and again."""
    opened = open_dataset(f"{many.url}/data", Cache(tmp_path / "cache", 1 / GIB))
    wrong: list[int] = []

    def read(step: int) -> None:
        for number in range(0, 24 * step, step):
            if not same(opened[number % 24], MANY[number % 24]):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(step,)) for step in (5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and not any(thread.is_alive() for thread in threads)
