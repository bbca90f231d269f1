"""The inner loop of shard_images: prepared documents in, coded documents out, with a limit on what may be put aside."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokenization.readers import Reject
from tokenization.sample import CodedDocument

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

    def judge_all(self) -> None:
        """Judge at the end of the job, however few documents there are. Also raises if none could be used."""
        self.judge()
        if self.reasons.total() == self.seen:
            raise TooManyRejects(f"none of the {self.seen:,} documents can be used")


class PartCoder:
    """Turns prepared chunks into the coded documents of one part after another.

    `seen` holds (source, id) of every document that was taken so far, `rejects` what the current part put aside.
    """

    def __init__(self, vq: VQ, batch_size: int, limit: RejectLimit, watch: Stopwatch, seen: set[tuple[str, str]]):
        self.vq = vq
        self.batch_size = batch_size
        self.limit = limit
        self.watch = watch
        self.seen = seen
        self.rejects: list[Reject] = []

    def code(self, chunks: Iterator[Chunk], progress: Callable[[int], Any]) -> list[CodedDocument]:
        """The documents of the next part in `chunks`. Raises TooManyRejects. `progress(n)` hears of every n records.

        Batches end with the part, so that what is encoded together does not depend on where an earlier run stopped.
        """
        self.rejects = []
        documents: list[CodedDocument] = []
        batch: list[tuple[CodedDocument, Image.Image]] = []
        last = False
        while not last:
            with self.watch.measure("waiting for input"):
                chunk = next(chunks)
            for item in map(self._unless_seen, chunk.items):
                if isinstance(item, Reject):
                    self.rejects.append(item)
                    self.limit.count(1, Counter([item.reason]))
                    continue
                self.limit.count(1, Counter())
                found = item.document
                coded = CodedDocument(found.id, found.source, found.kind, found.texts, item.text_ids, codes=[])
                documents.append(coded)
                if item.picture is not None:
                    batch.append((coded, item.picture))
                if len(batch) == self.batch_size:
                    self._encode(batch)
            progress(len(chunk.items))
            last = chunk.last
        if batch:
            self._encode(batch)
        return documents

    def _unless_seen(self, item: Prepared | Reject) -> Prepared | Reject:
        """The item, or a Reject if an earlier document of its source has the same id."""
        if isinstance(item, Reject):
            return item
        document = item.document
        if (document.source, document.id) in self.seen:
            detail = "an earlier document has this id; captions of one picture belong in one list"
            return Reject(document.id, document.source, document.file, "duplicate_id", detail)
        self.seen.add((document.source, document.id))
        return item

    def _encode(self, batch: list[tuple[CodedDocument, Image.Image]]) -> None:
        """Give every document of the batch the codes of its picture, and empty the batch."""
        with self.watch.measure("encoding"):
            grids = self.vq.encode([picture for _, picture in batch])
        for (document, _), grid in zip(batch, grids, strict=True):
            document.codes.append(grid)
        batch.clear()
