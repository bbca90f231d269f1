"""Rows of every kind of document, from corpora through shards: one order for any ranks, workers and resumptions."""

from __future__ import annotations

import hashlib
import threading
import time
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch

from model.prompts import DEFAULT_TEMPLATES
from model.vocabulary import IGNORED, Vocabulary
from pretrain.loader import RowDataset, RowSource, rows_from
from pretrain.row_tensors import Row
from pretrain.rows import MixtureStage, RowSize
from pretrain.tasks import TASK_NAMES, TaskShares, tokenize_prompts
from tests.commands import CommandServer
from tests.pretrain.tiny_run import save_tiny_vq
from tests.tokenization import kinds
from tests.tokenization.conftest import tokenizer_folder  # noqa: F401
from tests.tokenization.corpora import folder_corpus, jsonl
from tests.tokenization.store import serving
from tokenization.shard_cache import GIB, Cache

VOCABULARY = Vocabulary(image_token_offset=400, codebook_size=64, vision_start_id=290, vision_end_id=291, eos_id=292)
TOKENIZER = tokenize_prompts(lambda text: list(text.encode()), VOCABULARY, DEFAULT_TEMPLATES)
SHARES = TaskShares(0.6, 0.2, False, code_noise=0.5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, commands: CommandServer, tokenizer_folder: Path) -> Path:  # noqa: F811
    """Two datasets: captions and long texts; and conversations, editing and documents in order."""
    root = tmp_path_factory.mktemp("kinds")
    vq = save_tiny_vq(root / "vq", seed=0)
    inputs = {
        "pretrain": [
            folder_corpus(root / "captions", 60),
            jsonl(root / "text.jsonl", [{"text": f"{n} " + "word " * (n * 7 % 90)} for n in range(1, 40)]),
        ],
        "turns": [
            kinds.llava(root / "llava", as_list=True),
            kinds.parquet(root / "edits.parquet", kinds.bagel()),
            kinds.saved_to_disk(root / "ordered", kinds.in_order()),
            kinds.parquet(root / "fine.parquet", kinds.finevision()),
        ],
    }
    for name, paths in inputs.items():
        done = commands.run(
            "tokenization/shard_images.py",
            "--input",
            *paths,
            "--output",
            root / name,
            "--vq",
            vq,
            "--tokenizer",
            tokenizer_folder,
            "--samples-per-part",
            16,
        )
        assert done.code == 0, done.err
    return root


def dataset(shards: Path | str, cache: Cache | None = None, **options) -> RowDataset:
    sources = [RowSource(f"{shards}/pretrain", cache=cache), RowSource(f"{shards}/turns", weight=1.5, cache=cache)]
    return RowDataset(sources, TOKENIZER, SHARES, RowSize(240, 4), seed=5, **options)


def digest(row: Row) -> str:
    parts = (row.ids, row.labels, row.positions, row.to_document)
    return hashlib.sha256(b"".join([str(row.index).encode(), *(part.numpy().tobytes() for part in parts)])).hexdigest()


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_nothing_from_torchs_generator(shards, workers: int):
    """Dropout seeds that generator and draws from it in another thread, while workers may be begun again."""
    before = torch.get_rng_state()
    rows = rows_from(dataset(shards), 0, 0, 1, workers)
    next(rows)
    assert torch.equal(torch.get_rng_state(), before)


def texts_of(ids: numpy.ndarray) -> bytes:
    return ids[ids < 256].astype(numpy.uint8).tobytes()


def read(shards: Path, start: int, count: int, ranks: int, workers: int) -> list[str]:
    """Hashes of `count` rows from `start` on, read by so many ranks and put together again."""
    found: dict[int, str] = {}
    for rank in range(ranks):
        rows = rows_from(dataset(shards), start, rank, ranks, workers)
        for row in islice(rows, -(-(count - rank) // ranks)):
            found[row.index] = digest(row)
    assert sorted(found) == list(range(start, start + count))
    return [found[index] for index in range(start, start + count)]


def test_one_order_for_ranks_workers_and_resumptions(shards: Path):
    """1 to 4 ranks, 0 to 4 workers, over several epochs; and each combination begun where another stopped."""
    rows = dataset(shards)
    reference = [digest(rows[index]) for index in range(96)]
    assert len(set(reference)) == 96 and rows.plan.epoch_of(95) >= 1
    for ranks, workers in ((1, 0), (2, 0), (3, 0), (4, 0), (1, 4), (2, 3), (3, 1), (4, 2)):
        assert read(shards, 0, 48, ranks, workers if workers < 3 or ranks == 1 else 2) == reference[:48]
    consumed, pieces = 0, ((1, 2, 17), (4, 0, 30), (2, 1, 9), (3, 0, 40))
    for ranks, workers, count in pieces:
        assert read(shards, consumed, count, ranks, workers) == reference[consumed : consumed + count]
        consumed += count


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [0, 1], ids=["whole in the cache", "one shard in the cache"])
def test_rows_from_a_url_are_those_of_the_folder(shards: Path, tmp_path: Path, workers: int, limit: int):
    """Every shard is fetched once, or again and again where only one has room."""
    with serving(shards) as store:
        cache = Cache(tmp_path / "cache", limit / GIB)
        rows = rows_from(dataset(store.url, cache), 5, 0, 1, workers)
        found = [digest(row) for row in islice(rows, 96)]
        del rows
        asked = store.shards_asked()
    reference = dataset(shards)
    assert found == [digest(reference[index]) for index in range(5, 101)]
    assert len(asked) == sum(len(opened.manifest["shards"]) for opened in reference.datasets) > 6
    assert max(asked) == 1 if limit == 0 else max(asked) > 2


def test_without_workers_a_thread_reads_ahead_and_ends_with_the_rows(shards: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[int, str]] = []
    original = RowDataset.__getitem__

    def noted(self: RowDataset, index: int) -> Row:
        asked.append((index, threading.current_thread().name.split("_")[0]))
        return original(self, index)

    monkeypatch.setattr(RowDataset, "__getitem__", noted)
    rows = rows_from(dataset(shards), 3, 1, 2, workers=0, ahead=3)
    assert next(rows).index == 4
    deadline = time.monotonic() + 30
    while len(asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert asked == [(index, "rows") for index in (4, 6, 8, 10)]
    assert next(rows).index == 6
    del rows
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rows")]


def test_every_kind_of_document_is_in_the_rows_as_it_was_in_the_corpus(shards: Path):
    rows = dataset(shards)
    seen: dict[str, set[str]] = {}
    index = 0
    while rows.plan.epoch_of(index) < 2:
        row, pieces = rows[index], rows.plan.row(index)
        ids, labels = row.ids[row.to_document].numpy(), row.labels[row.to_document].numpy()
        at = 0
        for piece in pieces:
            stretch, learned = ids[at : at + piece.length], labels[at : at + piece.length]
            at += piece.length
            sample = rows.datasets[piece.source][piece.document]
            seen.setdefault(sample["kind"], set()).add(TASK_NAMES[piece.task])
            if piece.start == 0 and sample["kind"] != "caption_pair":
                beginning = sample["text_ids"][: min(60, sample["text_lengths"][0])] if sample["texts"] else []
                assert sample["kind"] == "edit" or numpy.asarray(beginning, numpy.uint8).tobytes() in texts_of(stretch)
            if sample["kind"] == "edit":
                codes = stretch[VOCABULARY.is_code(stretch)] - 400
                targets = learned[VOCABULARY.is_code(learned)] - 400
                assert numpy.array_equal(codes, sample["codes"]) and numpy.array_equal(targets, sample["codes"][16:])
            if sample["kind"] == "interleaved":
                assert (learned[:-1] != IGNORED).all()
        assert at == len(ids) - row.padding
        index += 1
    assert seen == {
        "caption_pair": {"text_to_image", "image_to_text", "unconditional"},
        "text": {"text"},
        "interleaved": {"in_order"},
        "conversation": {"turns"},
        "edit": {"turns"},
    }


def test_stages_that_route_know_the_rows_without_a_shard(shards: Path):
    """Pipeline stages in the middle read no shard: their rows have the same lengths, positions and permutations."""
    rows, routing = dataset(shards), dataset(shards, routing_only=True)
    for index in range(40):
        row, route = rows[index], routing[index]
        assert row.lengths == route.lengths and (row.positions == route.positions).all()
        assert (row.to_document == route.to_document).all()
    assert not any(opened._verified for opened in routing.datasets)


def test_a_curriculum_changes_what_comes_first(shards: Path):
    later = dataset(shards, stages=[MixtureStage(300, (0.0, 1.0))])
    first = [piece.source for index in range(2) for piece in later.plan.row(index)]
    assert set(first) == {1} and later.plan.epoch_of(0) == 0
    assert later.plan.fingerprint != dataset(shards).plan.fingerprint
