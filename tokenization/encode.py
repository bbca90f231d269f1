"""The inner loop of shard_images: prepared documents in, coded documents out, with a limit on what may be put aside."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenization.filters import SeenPictures
from tokenization.readers import Reject
from tokenization.sample import CodedDocument, layout_of

if TYPE_CHECKING:
    from PIL import Image

    from tokenization.pipeline import Chunk, Prepared
    from tokenization.vq_base import VQ

DOCUMENTS_TO_JUDGE = 100
"""The share of rejects is judged once this many documents are seen, and at the end."""


class TooManyRejects(Exception):
    """The share of rejects went over --max-rejects; the message says how far."""


class Stopwatch:
    """Seconds of the main thread, by what it was doing; what is not measured is the rest."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Add the time spent inside to `what`."""
        before = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] += time.monotonic() - before

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


class RejectLimit:
    """Counts documents and rejects, and says when there are too many of the latter."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.seen = 0
        self.reasons: Counter[str] = Counter()

    def count(self, seen: int, reasons: Counter[str]) -> None:
        """Add documents, and the rejects among them by reason. Raises TooManyRejects as soon as it can be judged."""
        self.seen += seen
        self.reasons += reasons
        if self.seen >= DOCUMENTS_TO_JUDGE:
            self.judge()

    def judge(self) -> None:
        """Raise TooManyRejects if the share of rejects is above the limit."""
        rejected = self.reasons.total()
        if rejected > self.share * self.seen:
            reason, most = self.reasons.most_common(1)[0]
            raise TooManyRejects(
                f"{rejected:,} of {self.seen:,} documents rejected ({rejected / self.seen:.1%}, --max-rejects is "
                f"{self.share:.1%}), most often as {reason} ({most:,})"
            )


class PartCoder:
    """Turns the prepared chunks of a file into the coded documents of one part after another.

    What was there before in the same file is not taken again: the same id, or a picture that looks the same.
    """

    def __init__(self, vq: VQ, batch_size: int, limit: RejectLimit, watch: Stopwatch, duplicate_bits: int = -1):
        self.vq = vq
        self.batch_size = batch_size
        self.limit = limit
        self.watch = watch
        self.duplicate_bits = duplicate_bits
        self.begin_file()

    def begin_file(self) -> None:
        """Forget what was seen."""
        self.ids: set[str] = set()
        self.seen = SeenPictures(self.duplicate_bits)
        self._begin_part()

    def known(self, ids: list[str], hashes: np.ndarray) -> None:
        """A part that is there already has these ids and pictures."""
        self.ids.update(ids)
        self.seen.add(hashes)

    def _begin_part(self) -> None:
        self.rejects: list[Reject] = []
        self.documents: list[CodedDocument] = []
        self.hashes: list[np.ndarray] = []
        self.batch: list[tuple[Hashable, Image.Image]] = []
        self.grids: dict[Hashable, np.ndarray | None] = {}  # of every picture of the part, once it is encoded
        self.wanted: list[tuple[CodedDocument, Hashable]] = []  # which of them a document has, in order

    def add(self, chunk: Chunk) -> tuple[list[CodedDocument], list[Reject], np.ndarray | None] | None:
        """Take a chunk. With the last one of a part: its documents, its rejects and its pictures' hashes.

        Raises TooManyRejects. Batches end with the part, so that what is encoded together does not depend on where an
        earlier run stopped.
        """
        for item in map(self._unless_seen, chunk.items):
            if isinstance(item, Reject):
                self.rejects.append(item)
                self.limit.count(1, Counter([item.reason]))
                continue
            self.limit.count(1, Counter())
            found = item.document
            layout = layout_of(found.parts)
            coded = CodedDocument(found.id, found.source, found.kind, found.texts, item.text_ids, [], layout)
            self.documents.append(coded)
            for number, picture in enumerate(item.pictures):
                key = item.keys[number] if item.keys else (found.id, number)
                self.wanted.append((coded, key))
                if key in self.grids:
                    continue
                self.grids[key] = None
                self.batch.append((key, picture))
                if len(self.batch) == self.batch_size:
                    self._encode()
        if not chunk.last:
            return None
        if self.batch:
            self._encode()
        for coded, key in self.wanted:
            coded.codes.append(self.grids[key])
        hashes = None
        if self.duplicate_bits >= 0:
            hashes = np.concatenate([np.zeros((0, 4), np.uint64), *self.hashes])
        done = self.documents, self.rejects, hashes
        self._begin_part()
        return done

    def _unless_seen(self, item: Prepared | Reject) -> Prepared | Reject:
        """The item, or a Reject if an earlier document of its file has the same id or the same picture."""
        if isinstance(item, Reject):
            return item
        document = item.document
        if document.id in self.ids:
            detail = "an earlier document has this id; captions of one picture belong in one list"
            return Reject(document.id, document.source, document.file, "duplicate_id", detail)
        if self.duplicate_bits >= 0:
            if (number := self.seen.find(item.hashes)) is not None:
                detail = f"picture {number + 1} looks like one of an earlier document of this file"
                return Reject(document.id, document.source, document.file, "duplicate_picture", detail)
            self.seen.add(item.hashes)
            self.hashes.append(item.hashes)
        self.ids.add(document.id)
        return item

    def _encode(self) -> None:
        """Turn the pictures of the batch into codes, and empty the batch."""
        with self.watch.measure("encoding"):
            grids = self.vq.encode([picture for _, picture in self.batch])
        self.grids.update(zip((key for key, _ in self.batch), grids, strict=True))
        self.batch.clear()


class Publisher:
    """Writes parts in a thread of its own while the next one is encoded; one at a time."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self.under_way: Future[Any] | None = None

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def submit(self, work: Callable[[], Any]) -> None:
        """Wait for what was submitted before, and begin this. Raises what the former raised."""
        self.wait()
        self.under_way = self.pool.submit(work)

    def wait(self) -> None:
        """Until all is written. Raises what writing raised."""
        before, self.under_way = self.under_way, None
        if before:
            before.result()
