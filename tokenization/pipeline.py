"""Pipeline before the encoder: the stream of a worker's files and parts, decoded and tokenized in threads.

Threads and not processes: decoding, resizing, hashing and tokenizing all release Python's lock, pictures need no copy
to get to the encoder, and nothing is left behind when the process is killed.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from model.shapes import Framing
from tokenization import storage
from tokenization.filters import Filters, picture_hash, within
from tokenization.frames import FURTHER
from tokenization.preprocess import RejectedImage, open_image, preprocess
from tokenization.readers.document import BadRecord, Document, ItemStream, Picture, Reject
from tokenization.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from PIL import Image

CHUNK = 8
"""Documents that a worker prepares at once."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Prepared:
    """A document ready for encoding: text_ids uint32 [tokens] for each text, RGB images of the encoder's size.

    `hashes` uint64 [pictures, 4] as `filters.picture_hash` makes them; [0, 4] if duplicates are not looked for. `keys`
    are equal for equal pictures, in documents of several: edits share theirs, and each need be encoded only once. `shapes`
    are the numbers of the pictures' sizes in the framing's set. `first_frames`: number of pictures whose files have further
    frames, which are left out.
    """

    document: Document
    text_ids: list[np.ndarray]
    pictures: list[Image.Image]
    hashes: np.ndarray
    keys: list[bytes]
    shapes: list[int] = field(default_factory=list)
    first_frames: int = 0


@dataclass(frozen=True)
class Chunk:
    """Consecutive items of a part, as read or prepared; `last` ends the part."""

    part: int
    items: list[Document | Reject | Prepared] = field(default_factory=list)
    last: bool = False


@dataclass(frozen=True)
class Preparation:
    """Preparation of documents before encoding. `draft`: JPEGs much larger than needed are decoded at reduced size."""

    tokenizer: TextTokenizer
    framing: Framing | int
    filters: Filters = field(default_factory=Filters)
    picture_seconds: float = 0.0
    draft: bool = False

    def prepare(self, chunk: Chunk) -> Chunk:
        """Decode and resize the images of a chunk and tokenize its texts; failures become a Reject."""
        decoded = [self.decode(item) for item in cast(list[Document | Reject], chunk.items)]
        texts = [text for item, *_ in decoded if isinstance(item, Document) for text in item.texts]
        ids = iter(self.tokenizer.encode(texts))
        items: list[Document | Reject | Prepared] = [
            Prepared(
                item,
                [next(ids) for _ in item.texts],
                pictures,
                hashes,
                keys_of(pictures),
                self.shapes_of(pictures),
                first_frames,
            )
            if isinstance(item, Document)
            else item
            for item, pictures, hashes, first_frames in decoded
        ]
        return Chunk(chunk.part, items, chunk.last)

    def decode(self, item: Document | Reject) -> tuple[Document | Reject, list[Image.Image], np.ndarray, int]:
        """The item with its images decoded and resized, without its files, and the number of these that have further
        frames; or a Reject."""
        none: np.ndarray = np.zeros((0, 4), np.uint64)
        if isinstance(item, Reject):
            return item, [], none, 0
        pictures: list[Image.Image] = []
        first_frames = 0
        try:
            self.filters.check_texts(item.texts)
            for picture in item.pictures:
                decoded, has_more = within(self.picture_seconds, partial(self.picture, picture))
                pictures.append(decoded)
                first_frames += has_more
        except (BadRecord, RejectedImage) as bad:
            count = len(item.pictures)
            where = f"picture {len(pictures) + 1} of {count}: " if count > 1 and isinstance(bad, RejectedImage) else ""
            return Reject(item.id, item.source, item.file, bad.reason, where + bad.detail), [], none, 0
        parts = tuple(replace(part, data=None) if isinstance(part, Picture) else part for part in item.parts)
        hashes = [picture_hash(picture) for picture in pictures] if self.filters.duplicate_bits >= 0 else []
        return replace(item, parts=parts), pictures, np.array(hashes, np.uint64) if hashes else none, first_frames

    def shapes_of(self, pictures: list[Image.Image]) -> list[int]:
        """Shape number of each image."""
        return [0 if isinstance(self.framing, int) else self.framing.sizes.index(picture.size) for picture in pictures]

    def picture(self, source: Picture) -> tuple[Image.Image, bool]:
        """Decode and resize an image -> it, and whether its file has further frames. Raises RejectedImage."""
        data = given = source.data
        if isinstance(given, str):
            try:
                data = storage.read_bytes(given)
            except OSError as error:
                if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
                    raise RejectedImage("missing_file", f"{given}: cannot be opened") from error
                raise
        image = open_image(
            cast(Path | bytes, data), self.filters.max_pixels, draft=self.draft_side(), check=self.filters.check_size
        )
        return preprocess(image, self.framing), FURTHER in image.info

    def draft_side(self) -> int:
        """Minimum side in pixels for reduced JPEG decoding: at least twice the output; 0 decodes in full."""
        longest = self.framing if isinstance(self.framing, int) else max(map(max, self.framing.sizes))
        return 2 * longest if self.draft else 0


def keys_of(pictures: list[Image.Image]) -> list[bytes]:
    """Pixel digest of each image; none for an image that is alone in its document."""
    if len(pictures) < 2:
        return []
    return [
        hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16).digest() for picture in pictures
    ]


def chunks_of(items: ItemStream, first: int, size: int, stop: int, chunk_size: int = CHUNK) -> Iterator[Chunk]:
    """Items of a file from record `first` * `size` on, as chunks of the parts of `size` records up to `stop`.

    Every part ends with a chunk that is its last, even if there is nothing in it: blank lines are no items.
    """
    entry = next(items, None)
    for part in range(first, stop):
        chunk: list[Document | Reject | Prepared] = []
        while entry is not None and entry[0] < (part + 1) * size:
            if len(chunk) == chunk_size:
                yield Chunk(part, chunk)
                chunk = []
            chunk.append(entry[1])
            entry = next(items, None)
        yield Chunk(part, chunk, last=True)


def prefetched(items: Iterator[T], work: Callable[[T], R], workers: int, ahead: int) -> Generator[R]:
    """Yield `work(item)` of every item, in order, from `workers` threads that are at most `ahead` items ahead
    (prefetch).

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
