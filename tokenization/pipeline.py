"""Everything before the encoder: parts, the stream of their documents, and worker threads that decode and tokenize.

Threads and not processes: decoding, resizing, hashing and tokenizing all release Python's lock, pictures need no copy
to get to the encoder, and nothing is left behind when the process is killed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tokenization.preprocess import RejectedImage, open_image, preprocess
from tokenization.readers import Corpus, CorpusFile, Document, Reject
from tokenization.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from PIL import Image

CHUNK = 8
"""Documents that a worker prepares at once."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Part:
    """Records `start` to `stop` of one file of a corpus."""

    index: int
    corpus: Corpus
    file: CorpusFile
    start: int
    stop: int


@dataclass(frozen=True)
class Prepared:
    """A document whose picture, if it has one, is RGB of the encoder's size; text_ids uint32 [tokens] for each text."""

    document: Document
    text_ids: list[np.ndarray]
    picture: Image.Image | None


@dataclass(frozen=True)
class Chunk:
    """Some consecutive items of a part, first as they were read and then prepared; `last` ends the part."""

    part: Part
    items: list[Document | Reject | Prepared] = field(default_factory=list)
    last: bool = False


def plan_parts(corpora: list[Corpus], size: int) -> list[Part]:
    """Cut the corpora into parts of at most `size` records, the same way every time."""
    parts: list[Part] = []
    for corpus in corpora:
        for file in corpus.files:
            for start in range(0, file.records, size):
                parts.append(Part(len(parts), corpus, file, start, min(start + size, file.records)))
    return parts


def read_chunks(parts: list[Part], size: int = CHUNK) -> Iterator[Chunk]:
    """The items of these parts in order. Parts that follow each other in a file are read in one go."""
    runs = groupby(enumerate(parts), key=lambda entry: (entry[1].file.path, entry[1].index - entry[0]))
    for _, numbered in runs:
        run = [part for _, part in numbered]
        items = run[0].corpus.read(run[0].file, run[0].start)
        entry = next(items, None)
        for part in run:
            chunk: list[Document | Reject | Prepared] = []
            while entry is not None and entry[0] < part.stop:
                if len(chunk) == size:
                    yield Chunk(part, chunk)
                    chunk = []
                chunk.append(entry[1])
                entry = next(items, None)
            yield Chunk(part, chunk, last=True)


def prepare(chunk: Chunk, tokenizer: TextTokenizer, image_size: int) -> Chunk:
    """Decode and resize the pictures of a chunk and tokenize its texts; what cannot be becomes a Reject."""
    decoded = [decode(item, image_size) for item in chunk.items]
    texts = [text for item, _ in decoded if isinstance(item, Document) for text in item.texts]
    ids = iter(tokenizer.encode(texts))
    items = [
        Prepared(item, [next(ids) for _ in item.texts], picture) if isinstance(item, Document) else item
        for item, picture in decoded
    ]
    return Chunk(chunk.part, items, chunk.last)


def decode(item: Document | Reject, image_size: int) -> tuple[Document | Reject, Image.Image | None]:
    """The item without its file, and its picture decoded and resized; a Reject if that cannot be done."""
    if isinstance(item, Reject) or item.picture is None:
        return item, None
    try:
        return replace(item, picture=None), preprocess(open_image(item.picture), image_size)
    except RejectedImage as bad:
        return Reject(item.id, item.source, item.file, bad.reason, bad.detail), None


def prefetched(items: Iterator[T], work: Callable[[T], R], workers: int, ahead: int) -> Iterator[R]:
    """`work(item)` of every item, in order, done by `workers` threads at most `ahead` items before they are asked for.

    Items are drawn in a thread of their own. With 0 workers everything happens here, when it is asked for. An exception
    of `items` or `work` is raised where its result would have come. Close the iterator to stop the threads early.
    """
    if not workers:
        yield from map(work, items)
        return
    results: queue.SimpleQueue[Future[R] | BaseException | None] = queue.SimpleQueue()
    slots = threading.Semaphore(ahead)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")

    def feed() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                slots.acquire()
                if stopped.is_set():
                    return
                results.put(pool.submit(work, item))
        except BaseException as error:
            end = error
        results.put(end)

    feeder = threading.Thread(target=feed, name="read", daemon=True)
    feeder.start()
    try:
        while (result := results.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result.result()
            slots.release()
    finally:
        stopped.set()
        slots.release()
        feeder.join()
        pool.shutdown(cancel_futures=True)
