"""Text streaming: which part of a growing text can be sent, and where it stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF_CHARACTER = "\ufffd"  # what byte-level tokenizers decode the first bytes of a character to


class TextStream:
    """Token ids in, text chunks out. All chunks together are `text`, however the ids were split.

    Leading and trailing white space is removed, unless `raw`, and so is the first stop sequence with what follows.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = (), raw: bool = False) -> None:
        self.decode, self.stop, self.raw = decode, tuple(stop), raw
        self.ids: list[int] = []
        self.sent = ""

    def push(self, token: int) -> bool:
        """Add a token -> whether a stop sequence was reached."""
        self.ids.append(token)
        return bool(self.stop) and self._end(self.decode(self.ids)) is not None

    def take(self) -> str:
        """Text that can be sent now: no partial characters, no beginning of a stop sequence, no trailing white
        space."""
        whole = self.decode(self.ids).rstrip(HALF_CHARACTER)
        end = self._end(whole)
        whole = whole[: len(whole) - self._held(whole) if end is None else end]
        return self._send(whole if self.raw else whole.strip())

    def finish(self) -> str:
        """Remaining text at the end."""
        return self._send(self.text)

    @property
    def text(self) -> str:
        """Text so far, as if it ended here."""
        whole = self.decode(self.ids)
        whole = whole[: self._end(whole)]
        return whole if self.raw else whole.strip()

    def _end(self, whole: str) -> int | None:
        found = [place for place in map(whole.find, self.stop) if place >= 0]
        return min(found, default=None)

    def _held(self, whole: str) -> int:
        """Number of final characters that may be the beginning of a stop sequence."""
        lengths = [n for text in self.stop for n in range(1, len(text)) if whole.endswith(text[:n])]
        return max(lengths, default=0)

    def _send(self, whole: str) -> str:
        if not whole.startswith(self.sent):  # a tokenizer whose later ids change earlier text, which was already sent
            return ""
        piece, self.sent = whole[len(self.sent) :], whole
        return piece
