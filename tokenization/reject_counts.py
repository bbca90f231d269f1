"""Rejects by reason, with the first of each: most rejects of a reason have one cause."""

from __future__ import annotations

from collections import Counter

from tokenization.readers.document import Reject

REASONS_TO_SAY = 5
"""Reasons of rejects that are told with an example."""


class RejectCounts:
    """Number of rejects by reason in `counts`, the first of each in `first`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, Reject] = {}

    def add(self, reject: Reject) -> bool:
        """Count a reject -> whether it is the first of its reason."""
        self.counts[reject.reason] += 1
        return self.first.setdefault(reject.reason, reject) is reject

    def in_words(self) -> str:
        """Number of each reason, the most frequent first; empty if there are none."""
        return ", ".join(f"{reason} {count:,}" for reason, count in self.counts.most_common())

    def left_out(self) -> str:
        """Number in all and of each reason: `3 left out (empty_text 2, invalid_json 1)`."""
        return f"{self.counts.total():,} left out" + (f" ({self.in_words()})" if self.counts else "")

    def examples(self) -> list[str]:
        """A line with the first of each of the first reasons."""
        return [example(reject) for reject in list(self.first.values())[:REASONS_TO_SAY]]


def example(reject: Reject) -> str:
    """A reject in a line, its file and detail shortened."""
    return f"rejected as {reject.reason}: {reject.file[:100]}: {reject.detail[:300]}"
