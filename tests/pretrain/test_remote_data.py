"""Training from datasets at a URL: the run is that of the local folders, and a store that is lost is exit code 75."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.data import cache_of
from tests.commands import Finished, assert_refused
from tests.pretrain import checkpoint_jobs
from tests.pretrain.test_parallel_run import write_config
from tests.pretrain.test_resume import Run, assert_same, uninterrupted
from tests.tokenization.store import Store, serving, unavailable
from tests.tokenization.test_shards import flip
from tokenization.shards import open_dataset

SHORT_PAUSES = ("tests.tokenization.store", "short_pauses")


@pytest.fixture
def store(tiny_data, tmp_path) -> Iterator[Store]:
    """A store with copies of both datasets, under their names."""
    for folder in (tiny_data.train, tiny_data.heldout):
        shutil.copytree(folder, tmp_path / "store" / folder.name)
    with serving(tmp_path / "store") as store:
        yield store


def overrides(store: Store, cache: Path, *more: str) -> list[str]:
    sources = f"data.sources=[{{path: '{store.url}/train'}}]"
    return [sources, f"data.heldout={store.url}/heldout", f"data.cache={cache}", *more]


def assert_store_lost(done: Finished, url: str) -> None:
    """Exit code 75, and one line with the URL."""
    assert done.code == 75, (done.code, done.err)
    assert done.err.startswith(f"error: {url}") and "does not answer" in done.err and done.err.count("\n") == 1, (
        done.err
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_started_again_from_a_store_that_is_busy(commands, tiny_data, tmp_path, store, workers):
    """503 to the first two requests for every file."""
    store.fault = lambda request: request.number <= 2 and unavailable(request)
    run = Run(commands, tiny_data, tmp_path / "run", *overrides(store, tmp_path / "cache", f"data.workers={workers}"))
    moment = ("tests.pretrain.kill_points", "from_a_store", "after_an_update", 3)
    assert commands.start("pretrain/train.py", *run.arguments, hook=moment).wait().code == -signal.SIGKILL
    assert sorted(store.shards_asked()) == [3, 3]
    done = commands.start("pretrain/train.py", *run.arguments, hook=SHORT_PAUSES).wait()
    assert done.code == 0 and "at step 2, row 4" in done.out and "data.cache_limit" not in done.out, done.err
    assert sorted(store.shards_asked()) == [3, 3]  # the cache is still there
    assert_same(run, uninterrupted(commands, tiny_data, "fp32"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_that_stays_away_is_exit_code_75(commands, tiny_data, tmp_path, store, workers):
    run = Run(commands, tiny_data, tmp_path / "run", *overrides(store, tmp_path / "cache", f"data.workers={workers}"))
    store.fault = lambda request: request.name.endswith(".mds") and "train" in request.name and unavailable(request)
    done = commands.run("pretrain/train.py", *run.arguments, hook=SHORT_PAUSES)
    assert_store_lost(done, f"{store.url}/train/parts/")
    store.fault = unavailable
    done = commands.run("pretrain/train.py", *run.arguments, hook=SHORT_PAUSES)
    assert_store_lost(done, f"{store.url}/train/manifest.json")


def test_a_rank_that_loses_the_store_ends_all_with_75(world, tiny_data, tmp_path, store):
    """Rank 0 has the shards in its cache, rank 1 does not."""
    caches = [tmp_path / "warm", tmp_path / "cold"]
    config = write_config(tiny_data, tmp_path / "run", {}, data={"heldout": ""})
    first = load_config(config, overrides(store, caches[0]))
    open_dataset(f"{store.url}/train", cache_of(first.data)).verify()
    store.fault = lambda request: request.name.endswith(".mds") and unavailable(request)
    of_ranks = [[*overrides(store, cache), "data.heldout=''"] for cache in caches]
    with pytest.raises(AssertionError) as caught:
        world.run(checkpoint_jobs.train_run_with_own_overrides, 2, config=config, overrides=of_ranks)
    told = str(caught.value)
    assert told.count("pretrain.system.errors.TryAgain: ") == 1 and f"{store.url}/train/parts/" in told
    assert (
        told.index("ReportedByOtherRank: 75") < told.index("rank 1:") < told.index("pretrain.system.errors.TryAgain: ")
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_user_must_mend_is_named_with_its_url(commands, tiny_data, tmp_path, store, workers):
    shard = next((store.folder / "train").glob("parts/*/*.mds"))
    flip(shard, 400)
    arguments = overrides(store, tmp_path / "cache", f"data.workers={workers}")
    run = Run(commands, tiny_data, tmp_path / "run", *arguments)
    done = commands.run("pretrain/train.py", *run.arguments, hook=SHORT_PAUSES)
    assert_refused(done, f"{store.url}/{shard.relative_to(store.folder)}: is not what the manifest says")


def test_a_url_without_a_cache_and_one_without_a_dataset(commands, tiny_data, tmp_path, store):
    run = Run(commands, tiny_data, tmp_path / "run", *overrides(store, tmp_path / "cache"))
    done = commands.run("pretrain/train.py", *run.arguments, "data.cache=''")
    assert_refused(done, f"{store.url}/train", "data.cache")
    done = commands.run("pretrain/train.py", *run.arguments, f"data.heldout={store.url}/nowhere")
    assert_refused(done, f"{store.url}/nowhere/manifest.json", "is not there")
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_changed_at_its_url_is_refused(commands, tiny_data, tmp_path, store):
    run = Run(commands, tiny_data, tmp_path / "run", *overrides(store, tmp_path / "cache"))
    assert run.start("after_an_update", 3).wait().code == -signal.SIGKILL
    shutil.rmtree(store.folder / "train")
    shutil.copytree(store.folder / "heldout", store.folder / "train")
    assert_refused(run.start().wait(), "was trained on other rows")


def test_a_resumed_run_may_read_the_same_dataset_from_elsewhere(commands, tiny_data, tmp_path, store):
    """Begun from the folder, continued from the URL: rows depend on what is in a dataset, not on where it lies."""
    run = Run(commands, tiny_data, tmp_path / "run")
    assert run.start("after_an_update", 5).wait().code == -signal.SIGKILL
    run.arguments += overrides(store, tmp_path / "cache", f"data.cache_limit={1e-6}")
    done = run.finish()
    assert "at step 4, row 8" in done.out
    assert (
        "warning: data.cache_limit 1e-06: rows that are read together need" in done.out
        and "again and again" in done.out
    )
    assert_same(run, uninterrupted(commands, tiny_data, "fp32"))
