"""Data loader: rows of a data-parallel rank, in order, from any number of worker processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TypeVar

import numpy
import torch

from model.shapes import framing_of, size_word
from model.vocabulary import Vocabulary
from pretrain.lost_workers import Sent, restarting_workers, sent
from pretrain.prefetch import Prefetcher
from pretrain.row_tensors import Row, assemble
from pretrain.rows import (
    MixtureStage,
    RowPlan,
    RowSegment,
    RowSize,
    SourceLengths,
    pair_of_index,
    parts_of_index,
    seeded,
)
from pretrain.system.errors import TryAgain, UserError
from pretrain.system.logs import LOGGER
from pretrain.tasks import (
    NO_INSTRUCTION,
    ORDERED,
    TEXT_TO_IMAGE,
    TURNS,
    UNCONDITIONAL,
    TaskShares,
    TokenizedPrompts,
    build_document,
    build_ordered,
    replace_codes,
    replace_shared_codes,
)
from tokenization.readers.document import EDIT, KINDS
from tokenization.sample import Part
from tokenization.shard_cache import Cache

T = TypeVar("T")


@dataclass(frozen=True)
class RowSource:
    """One dataset of code shards, in a folder or at a URL, and how often an epoch uses it."""

    path: str | Path
    weight: float = 1.0
    share: float = 0.0  # of an epoch's tokens; if any source has one, weights do not count
    cache: Cache | None = None  # cache of a URL


class RowDataset(torch.utils.data.Dataset):
    """Map-style dataset from the global index of a row to the row. Workers open the shards themselves."""

    def __init__(
        self,
        sources: list[RowSource],
        tokenized: TokenizedPrompts,
        shares: TaskShares,
        size: RowSize,
        seed: int,
        routing_only: bool = False,
        stages: Sequence[MixtureStage] = (),
    ):
        """routing_only: rows with lengths, positions and permutation, and placeholder ids; no shard is read."""
        from tokenization.shards import open_dataset

        self.datasets = [open_dataset(source.path, source.cache) for source in sources]
        lengths = [
            SourceLengths(dataset.fingerprint, source.weight, dataset.lengths, source.share)
            for dataset, source in zip(self.datasets, sources)
        ]
        self.plan = RowPlan(lengths, tokenized, shares, size, seed, stages)
        self.tokenized, self.shares, self.size, self.routing_only = tokenized, shares, size, routing_only

    def __getitem__(self, index: int) -> Row:
        """Row `index` of training."""
        noisy = self.shares.code_noise or self.shares.shared_noise
        noise = seeded(f"{self.plan.fingerprint}:noise:{index}") if noisy else None
        documents = [self._document(segment, noise) for segment in self.plan.row(index)]
        return assemble(index, documents, self.tokenized.vocabulary, self.size)

    def _document(
        self, segment: RowSegment, noise: numpy.random.Generator | None
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(ids, labels) of a segment."""
        if segment.task in ORDERED:
            ids, labels = build_ordered(self.tokenized, segment.task, segment.text, self._parts(segment, noise))
        else:
            caption, codes, shape = self._read(pair_of_index, segment, segment.text)
            ids, labels = build_document(
                self.tokenized, segment.task, segment.wording, caption, codes, self.shares.train_on_prompts, shape
            )
        if noise is not None and segment.task in (TEXT_TO_IMAGE, UNCONDITIONAL) and not self.routing_only:
            ids = replace_codes(ids, self.tokenized.vocabulary, self.shares.code_noise, noise)
        end = segment.start + segment.length
        return ids[segment.start : end], labels[segment.start : end]

    def _parts(self, segment: RowSegment, noise: numpy.random.Generator | None) -> list[Part]:
        """Parts of a document in order, without grids."""
        parts = self._read(parts_of_index, segment)
        shared = self.shares.shared_noise and segment.task in (TURNS, NO_INSTRUCTION)
        if noise is not None and shared and self._is_edit(segment):
            return replace_shared_codes(parts, self.tokenized.vocabulary.codebook_size, self.shares.shared_noise, noise)
        return parts

    def _is_edit(self, segment: RowSegment) -> bool:
        return self.plan.sources[segment.source].index.kinds[segment.document] == KINDS.index(EDIT)

    def _read(self, of_index: Callable[..., T], segment: RowSegment, *which: int) -> T:
        """What `of_index` makes of a segment's document and the contents of its shard (zeros for `routing_only`)."""
        index, dataset = self.plan.sources[segment.source].index, self.datasets[segment.source]
        contents = () if self.routing_only else dataset.tokens(segment.document)
        try:
            return of_index(index, segment.document, *which, *contents)
        except ValueError as error:
            raise UserError(f"document {segment.document} of {dataset.folder}: {error}") from None


def rows_from(
    dataset: RowDataset,
    start: int,
    rank: int,
    ranks: int,
    workers: int,
    ahead: int = 1,
    warn: Callable[[str], object] = LOGGER.warning,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Row]:
    """Yield rows start + rank, start + rank + ranks, ... without end, in that order for any number of workers.

    A thread of this process reads `ahead` rows before they are asked for: without workers from the shards, with them from
    what they pass on, which takes milliseconds too. Raises UserError for a damaged shard, TryAgain for one that cannot be
    downloaded, in whichever process it is found. Killed workers are restarted (`lost_workers.restarting_workers`): `warn`
    gets a line about it; `stopped` says that a restart is useless.
    """
    dataset.plan.block_of(start)  # checked once, here, and not by every worker
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")  # fork is unsafe in a threaded parent
        context.set_forkserver_preload(["__main__", "pretrain.loader_imports"])

    def begin(first: int) -> Iterator:
        loader = torch.utils.data.DataLoader(
            _Stream(dataset),
            sampler=_Counter(first, ranks),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context=context,
            worker_init_fn=_end_with_parent if workers else None,
            # An own generator: the default would draw a seed from torch's, which dropout uses in another thread
            generator=torch.Generator(),
        )
        return _start(loader) if workers else iter(loader)

    items = restarting_workers(begin, start + rank, ranks, warn, stopped) if workers else begin(start + rank)
    return _read_ahead(map(_row_or_error, items), ahead)


def _read_ahead(rows: Iterator[Row], count: int) -> Iterator[Row]:
    """The same rows, read ahead in a thread. Closing or garbage-collecting the iterator ends the thread."""
    reader = ThreadPoolExecutor(1, thread_name_prefix="rows")
    try:
        coming = deque(reader.submit(next, rows) for _ in range(count))
        while True:
            row = coming.popleft().result()
            coming.append(reader.submit(next, rows))
            yield row
    finally:
        reader.shutdown(cancel_futures=True)


def _start(loader: torch.utils.data.DataLoader) -> Iterator:
    """Start workers that ignore Ctrl-C and SIGUSR1, which go to all processes of a job: the loop still needs their
    rows."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))
    try:
        resource_tracker.ensure_running()  # starting them below would re-enable Ctrl-C
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _end_with_parent(_worker: int) -> None:
    """End this worker when its parent process ends, however that happens.

    torch's own watchdog looks for the process that forked the worker, and that one waits for its workers: when a run
    is killed, both would wait for ever.
    """

    def wait() -> None:
        if (reader := multiprocessing.parent_process()) is not None:  # exists in a worker
            reader.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _Stream(torch.utils.data.Dataset):
    """Iterable of rows in order, with shards prefetched from remote storage.

    It hands an error for the user over as an item: raised in a worker, it would come out with the worker's traceback in it.
    """

    def __init__(self, rows: RowDataset):
        self.rows = rows
        self.ahead = Prefetcher(() if rows.routing_only else rows.datasets, rows.plan)

    def __getitem__(self, index: int) -> Row | UserError | TryAgain | Sent:
        self.ahead.note(index)
        item: Row | UserError | TryAgain
        try:
            item = self.rows[index]
        except (UserError, TryAgain) as error:
            item = type(error)(str(error))
        return sent(item) if torch.utils.data.get_worker_info() else item


def _row_or_error(item: Row | UserError | TryAgain) -> Row:
    if isinstance(item, (UserError, TryAgain)):
        raise item
    return item


class _Counter(torch.utils.data.Sampler):
    def __init__(self, first: int, step: int):
        self.first, self.step = first, step

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first, self.step)


def check_sources(manifests: list[dict], vocabulary: Vocabulary) -> None:
    """Check that all sources have one text tokenizer, one image tokenizer and one image size. Raises UserError.

    Squares may stand beside one set of shapes, whose first they are.
    """
    for key in ("tokenizer", "vq"):
        name = "sha256" if key == "tokenizer" else "fingerprint"
        found = {manifest[key][name] for manifest in manifests}
        if len(found) > 1:
            raise UserError(
                f"data.sources were made with different {key}s ({sorted(found)}): shard them again with one"
            )
    sizes = sorted({manifest["vq"]["image_size"] for manifest in manifests})
    if len(sizes) > 1:
        raise UserError(
            f"data.sources have pictures of {' and '.join(map(str, sizes))} pixels a side, and a model draws one "
            "grid of codes: shard them again with one --image-size"
        )
    with_pictures = [framing_of(manifest["vq"]) for manifest in manifests if manifest["counts"]["pictures"]]
    sets = {framing.grids for framing in with_pictures if len(framing.grids) > 1}
    if len(sets) > 1:
        listed = " and ".join(sorted(", ".join(map(size_word, grids)) for grids in sets))
        raise UserError(
            f"data.sources have pictures of different sets of shapes ({listed}): shard them again with one --shapes"
        )
    if len({framing.pad for framing in with_pictures}) > 1:
        raise UserError(
            "some of data.sources have pictures that were cropped, and some padded ones: shard them again with one "
            "--fit, which the model then has for pictures of prompts"
        )
    codes = manifests[0]["vq"]["codebook_size"]
    if codes != vocabulary.codebook_size:
        raise UserError(f"the model has {vocabulary.codebook_size} picture codes, the shards have {codes}")
