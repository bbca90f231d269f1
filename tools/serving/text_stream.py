"""A text as it grows: what of it can be sent already, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF_CHARACTER = "\ufffd"  # what byte-level tokenizers decode the first bytes of a character to


class TextStream:
    """Token ids in, pieces of text out. All pieces together are `text`, however the ids were cut.

    White space around the text is left out, unless it is to be `raw`, and so is the first stop text with what follows.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = (), raw: bool = False) -> None:
        self.decode, self.stop, self.raw = decode, tuple(stop), raw
        self.ids: list[int] = []
        self.sent = ""

    def push(self, token: int) -> bool:
        """Add a token -> whether a stop text has been said."""
        self.ids.append(token)
        return bool(self.stop) and self._end(self.decode(self.ids)) is not None

    def take(self) -> str:
        """What can be sent now: no half characters, no beginning of a stop text, no white space that may be the end."""
        whole = self.decode(self.ids).rstrip(HALF_CHARACTER)
        end = self._end(whole)
        whole = whole[: len(whole) - self._held(whole) if end is None else end]
        return self._send(whole if self.raw else whole.strip())

    def finish(self) -> str:
        """What is left to send when nothing follows."""
        return self._send(self.text)

    @property
    def text(self) -> str:
        """The text so far, as if it ended here."""
        whole = self.decode(self.ids)
        whole = whole[: self._end(whole)]
        return whole if self.raw else whole.strip()

    def _end(self, whole: str) -> int | None:
        found = [place for place in map(whole.find, self.stop) if place >= 0]
        return min(found, default=None)

    def _held(self, whole: str) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        lengths = [n for text in self.stop for n in range(1, len(text)) if whole.endswith(text[:n])]
        return max(lengths, default=0)

    def _send(self, whole: str) -> str:
        if not whole.startswith(self.sent):  # a tokenizer whose later ids change earlier text: that cannot be unsaid
            return ""
        piece, self.sent = whole[len(self.sent) :], whole
        return piece
