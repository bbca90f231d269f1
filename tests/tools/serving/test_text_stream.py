"""Texts as they are sent, piece by piece: together they are the whole text, up to its first stop text."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from tools.serving.text_stream import TextStream


def decode(ids: list[int]) -> str:
    """One id a byte, as a byte-level tokenizer without merges decodes."""
    return bytes(ids).decode("utf-8", errors="replace")


def run(data: bytes, stop: list[str]) -> tuple[list[str], str]:
    """The pieces that are sent, and what is left of `data` when it ends."""
    stream, pieces = TextStream(decode, stop), []
    for byte in data:
        if stream.push(byte):
            break
        pieces.append(stream.take())
    return [*pieces, stream.finish()], stream.text


def until_the_first_that_is_whole(text: str, stop: list[str]) -> str:
    """Of stop texts that overlap the one that is complete first ends a stream, which cannot know what follows."""
    for end in range(1, len(text) + 1):
        places = [text[:end].find(one) for one in stop if one in text[:end]]
        if places:
            return text[: min(places)]
    return text


@example("DED", ["E", "DED"])
@given(
    st.text(alphabet="ab E\nNDé红🍎", max_size=30),
    st.lists(st.text(alphabet="abEND", min_size=1, max_size=3), max_size=3),
)
def test_the_pieces_are_the_text_up_to_the_first_stop(text, stop):
    pieces, whole = run(text.encode(), stop)
    assert "".join(pieces) == whole
    assert whole == until_the_first_that_is_whole(text, stop).strip()
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=30))
def test_bytes_that_are_no_text_are_sent_once(data):
    pieces, whole = run(data, [])
    assert "".join(pieces) == whole == decode(list(data)).strip()


def test_what_may_begin_a_stop_text_waits():
    pieces, _ = run(b"one EN, two END three", ["END"])
    assert [piece for piece in pieces if "E" in piece] == [" EN,"] and "".join(pieces) == "one EN, two"
