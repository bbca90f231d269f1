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
    from tokenization.pipeline import Chunk
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


def code_part(
    chunks: Iterator[Chunk],
    vq: VQ,
    batch_size: int,
    seen: set[tuple[str, str]],
    rejects: list[Reject],
    limit: RejectLimit,
    watch: Stopwatch,
    progress: Callable[[int], Any],
) -> list[CodedDocument]:
    """The documents of the next part in `chunks`, their pictures as codes; what is put aside is added to `rejects`.

    Batches end with the part, so that what is encoded together does not depend on where an earlier run stopped.
    """
    documents: list[CodedDocument] = []
    batch: list[tuple[CodedDocument, Any]] = []

    def encode_batch() -> None:
        if batch:
            with watch.measure("encoding"):
                grids = vq.encode([picture for _, picture in batch])
            for (document, _), grid in zip(batch, grids, strict=True):
                document.codes.append(grid)
            batch.clear()

    last = False
    while not last:
        with watch.measure("waiting for input"):
            chunk = next(chunks)
        for item in chunk.items:
            if not isinstance(item, Reject) and (item.document.source, item.document.id) in seen:
                found = item.document
                item = Reject(found.id, found.source, found.file, "duplicate_id", "an earlier document has this id")
            if isinstance(item, Reject):
                rejects.append(item)
                limit.count(1, Counter([item.reason]))
                continue
            limit.count(1, Counter())
            found = item.document
            seen.add((found.source, found.id))
            documents.append(CodedDocument(found.id, found.source, found.kind, found.texts, item.text_ids, codes=[]))
            if item.picture is not None:
                batch.append((documents[-1], item.picture))
                if len(batch) == batch_size:
                    encode_batch()
        progress(len(chunk.items))
        last = chunk.last
    encode_batch()
    return documents
