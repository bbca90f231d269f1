"""Encoding loop of shard_images: prepared documents in, encoded documents out, with a limit on rejects.

The encoder and the writer of parts have a thread and a short queue each, so that the encoder always has a next batch, also
at the end of a part or a file.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tokenization.filters import DUPLICATE, SeenPictures
from tokenization.frames import merged
from tokenization.readers import Reject
from tokenization.sample import CodedDocument, layout_of

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from tokenization.pipeline import Chunk, Prepared
    from tokenization.vq_base import VQ

BATCHES_AHEAD = 2
"""Batches that are ready or in work at a time, as pixels: 100 MB each for 32 pictures of 512 x 512."""
WRITES_BEHIND = 2
"""Parts, or what comes between them, that wait to be written or are being written."""
DOCUMENTS_TO_JUDGE = 100
"""The share of rejects is judged once this many documents are seen, and at the end."""


class TooManyRejects(Exception):
    """The share of rejects is over --max-rejects; the message gives it."""


class Stopwatch:
    """Seconds of the main thread by activity, and of the encoder's thread as `encoding`, in parallel."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Add the time inside the context to `what`."""
        before = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] += time.monotonic() - before

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


class RejectLimit:
    """Counts documents and rejects, and enforces --max-rejects."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.seen = 0
        self.reasons: Counter[str] = Counter()

    def count(self, seen: int, reasons: Counter[str]) -> None:
        """Count documents, and rejects by reason. Raises TooManyRejects once enough documents were seen."""
        self.seen += seen
        self.reasons += reasons
        if self.seen >= DOCUMENTS_TO_JUDGE:
            self.judge()

    def judge(self) -> None:
        """Raises TooManyRejects if the share of rejects is above the limit."""
        rejected = self.reasons.total()
        if rejected > self.share * self.seen:
            reason, most = self.reasons.most_common(1)[0]
            raise TooManyRejects(
                f"{rejected:,} of {self.seen:,} documents rejected ({rejected / self.seen:.1%}, --max-rejects is "
                f"{self.share:.1%}), most often as {reason} ({most:,})"
            )


class DocumentEncoder:
    """Image tokenizer in its own thread, which encodes one batch after another."""

    def __init__(self, vq: VQ, watch: Stopwatch):
        import torch

        self.vq, self.watch = vq, watch
        self.under_way: deque[Future[np.ndarray]] = deque()
        # a new thread does not inherit torch's number of threads
        self.pool = ThreadPoolExecutor(1, "encode", torch.set_num_threads, (torch.get_num_threads(),))

    def __enter__(self) -> DocumentEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def submit(self, pictures: list[Image.Image]) -> Future[np.ndarray]:
        """Future of codes uint16 [b, h, w]. Blocks while the queue is full (backpressure). Raises errors of earlier
        encoding."""
        from tokenization.vq_base import pixels_of

        pixels = pixels_of(pictures)
        with self.watch.measure("waiting for the encoder"):
            while len(self.under_way) >= BATCHES_AHEAD:
                self.under_way.popleft().result()
        self.under_way.append(self.pool.submit(self._encode, pixels))
        return self.under_way[-1]

    def _encode(self, pixels: torch.Tensor) -> np.ndarray:
        with self.watch.measure("encoding"):
            return self.vq.encode_pixels(pixels)


@dataclass(frozen=True)
class CodedPart:
    """A part's documents and rejects, and the hashes of its images, uint64 [n, 4], if duplicates are looked for.

    `batches` says which pictures a batch has, and holds its codes when they are ready; `wanted`, which of them belong to
    each document, in order: a picture that several documents share is encoded once. `first_frames` counts its pictures of
    which further frames are left out, as `frames.merged` does.
    """

    documents: list[CodedDocument]
    rejects: list[Reject]
    hashes: np.ndarray | None
    batches: list[tuple[list[Hashable], Future[np.ndarray]]]
    wanted: list[tuple[CodedDocument, Hashable]]
    first_frames: dict[str, Any]

    def wait(self) -> None:
        """Wait until all images are encoded and the documents have their codes. Raises errors of encoding."""
        grids: dict[Hashable, np.ndarray] = {}
        for keys, codes in self.batches:
            grids.update(zip(keys, codes.result(), strict=True))
        for document, key in self.wanted:
            document.codes.append(grids[key])


class PartCoder:
    """Turns prepared chunks of a file into encoded documents, part by part.

    Duplicates within a file are rejected: the same id, or a similar image.
    """

    def __init__(self, encoder: DocumentEncoder, batch_size: int, limit: RejectLimit, duplicate_bits: int = -1):
        self.encoder = encoder
        self.batch_size = batch_size
        self.limit = limit
        self.duplicate_bits = duplicate_bits
        self.pictures = 0  # futures of the encoder
        self.begin_file()

    def begin_file(self) -> None:
        """Reset the ids and images seen so far, for a new file."""
        self.ids: set[str] = set()
        self.seen = SeenPictures(self.duplicate_bits)
        self._begin_part()

    def known(self, ids: list[str], hashes: np.ndarray) -> None:
        """Note the ids and images of a part that exists already."""
        self.ids.update(ids)
        self.seen.add(hashes)

    def _begin_part(self) -> None:
        self.rejects: list[Reject] = []
        self.documents: list[CodedDocument] = []
        self.hashes: list[np.ndarray] = []
        self.batch: dict[tuple[int, int], list[tuple[Hashable, Image.Image]]] = {}  # by the size of the pictures
        self.batches: list[tuple[list[Hashable], Future[np.ndarray]]] = []
        self.asked: set[Hashable] = set()  # pictures of the part that are in a batch
        self.wanted: list[tuple[CodedDocument, Hashable]] = []  # which of them a document has, in order
        self.first_frames: list[dict[str, Any]] = []

    def add(self, chunk: Chunk) -> CodedPart | None:
        """Add a chunk. With the last one of a part: returns that part, of which the last images may still be encoding.

        Raises TooManyRejects. A batch does not span parts, so that batches do not depend on where an earlier run stopped.
        """
        for item in map(self._unless_seen, cast("list[Prepared | Reject]", chunk.items)):
            if isinstance(item, Reject):
                self.rejects.append(item)
                self.limit.count(1, Counter([item.reason]))
                continue
            self.limit.count(1, Counter())
            found = item.document
            layout = layout_of(found.parts, item.shapes)
            coded = CodedDocument(found.id, found.source, found.kind, found.texts, item.text_ids, [], layout)
            self.documents.append(coded)
            if item.first_frames:
                self.first_frames.append({"pictures": item.first_frames, "example": found.file})
            for number, picture in enumerate(item.pictures):
                key = item.keys[number] if item.keys else (found.id, number)
                self.wanted.append((coded, key))
                if key in self.asked:
                    continue
                self.asked.add(key)
                batch = self.batch.setdefault(picture.size, [])
                batch.append((key, picture))
                if len(batch) == self.batch_size:
                    self._encode(picture.size)
        if not chunk.last:
            return None
        for size in list(self.batch):
            self._encode(size)
        hashes = None
        if self.duplicate_bits >= 0:
            hashes = np.concatenate([np.zeros((0, 4), np.uint64), *self.hashes])
        frames = merged(self.first_frames)
        done = CodedPart(self.documents, self.rejects, hashes, self.batches, self.wanted, frames)
        self._begin_part()
        return done

    def _unless_seen(self, item: Prepared | Reject) -> Prepared | Reject:
        """The item, or a Reject if an earlier document of its file has the same id or the same image."""
        if isinstance(item, Reject):
            return item
        document = item.document
        if document.id in self.ids:
            detail = "an earlier document has this id; captions of one picture belong in one list"
            return Reject(document.id, document.source, document.file, "duplicate_id", detail)
        if self.duplicate_bits >= 0:
            if (number := self.seen.find(item.hashes)) is not None:
                detail = f"picture {number + 1} looks like one of an earlier document of this file"
                return Reject(document.id, document.source, document.file, DUPLICATE, detail)
            self.seen.add(item.hashes)
            self.hashes.append(item.hashes)
        self.ids.add(document.id)
        return item

    def _encode(self, size: tuple[int, int]) -> None:
        """Submit the batch of images of one size to the encoder, and begin another."""
        keys, pictures = (list(column) for column in zip(*self.batch.pop(size)))
        self.batches.append((keys, self.encoder.submit(pictures)))
        self.pictures += len(pictures)


class Publisher:
    """Writes parts and records in order, in its own thread. After a failure it writes no more."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self.under_way: deque[Future[None]] = deque()
        self.failed = False

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()  # finished parts are written, even if the job has to stop

    def submit(self, work: Callable[[], Any]) -> None:
        """Queue an action after the earlier ones. Blocks while the queue is full (backpressure). Raises errors of
        earlier actions."""
        self._wait(WRITES_BEHIND - 1)
        self.under_way.append(self.pool.submit(self._do, work))

    def wait(self) -> None:
        """Wait until everything is written. Raises errors of writing."""
        self._wait(0)

    def _wait(self, left: int) -> None:
        while len(self.under_way) > left:
            self.under_way.popleft().result()

    def _do(self, work: Callable[[], Any]) -> None:
        if self.failed:  # a file is not finished without all its parts
            return
        try:
            work()
        except BaseException:
            self.failed = True
            raise
