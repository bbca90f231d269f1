"""Documents and rejects, which every reader yields, and checks of records that all formats share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pretrain.system.strict_json import from_json

CAPTION_PAIR, TEXT, INTERLEAVED, CONVERSATION, EDIT = "caption_pair", "text", "interleaved", "conversation", "edit"
KINDS = (CAPTION_PAIR, TEXT, INTERLEAVED, CONVERSATION, EDIT)
"""Kinds of documents, in the order by which shards number them: a picture with captions, one text, texts and pictures
in order, turns of a conversation, and turns of picture editing, whose answers are pictures."""

ROLES = ("", "system", "user", "assistant")
"""Who says a part, in the order by which shards number them; the first stands for documents without turns."""

CAPTION_KEYS = ("captions", "caption", "text")
"""Where the captions of a picture may stand; the first key that is there is used."""


PICTURE_SUFFIXES = frozenset(
    ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "jp2", "avif"]
)
"""Suffixes of files that are taken for pictures, in lower case and without the dot."""


@dataclass(frozen=True)
class Text:
    """A text: `wordings` are alternatives, of which training draws one; nearly always there is only one."""

    wordings: tuple[str, ...]
    role: str = ""


@dataclass(frozen=True)
class Picture:
    """An image before decoding: a local path, a URL, or the bytes of its file; None once it is decoded."""

    data: Path | str | bytes | None
    role: str = ""


@dataclass(frozen=True)
class Document:
    """One document of a corpus: its parts in order. `file` is for error messages.

    A caption pair is a picture and one text, whose wordings are the alternative captions.
    """

    id: str
    source: str
    file: str
    kind: str
    parts: tuple[Text | Picture, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """All wordings of all texts, in order."""
        return tuple(text for part in self.parts if isinstance(part, Text) for text in part.wordings)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All images, in order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True)
class Reject:
    """A rejected document: `reason` is the word that rejects are counted by, `detail` is for the reader."""

    id: str
    source: str
    file: str
    reason: str
    detail: str

    def as_json(self) -> str:
        """One line of rejects.jsonl, without its newline."""
        return json.dumps(asdict(self), ensure_ascii=False)


class BadRecord(Exception):
    """A record that cannot become a document, with the reason."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class DamagedFile(Exception):
    """A corpus file that cannot be read, or not to its end; the message says what is wrong."""


@dataclass(frozen=True)
class CorpusFile:
    """A unit of work: a corpus file, or several small ones. `size`: total bytes; `name`: the first one's.

    `members`, of pictures and texts in files of their own: name in the folder and size of each, of which `paths` has the
    texts alone.
    """

    name: str
    paths: tuple[str, ...]
    size: int
    members: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class OpenFile:
    """A unit of work on a local disk. `root` is the folder or URL that image paths are relative to.

    `members` as in CorpusFile.
    """

    name: str
    paths: tuple[Path, ...]
    root: str
    source: str
    kind: str
    members: tuple[tuple[str, int], ...] = ()


NumberedItem = tuple[int, Document | Reject]
"""A record's number in its file, from 0, and what became of it."""

ItemStream = Iterator[NumberedItem]


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises BadRecord `invalid_utf8` or `invalid_json`."""
    text = decode_utf8(data)
    try:
        value = from_json(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord("invalid_json", str(error) or "nested too deeply") from error
    if not isinstance(value, dict):
        raise BadRecord("invalid_json", f"expected an object, found {json_type(value)}")
    return value


def decode_utf8(data: bytes) -> str:
    """Decode UTF-8 text, without a byte-order mark. Raises BadRecord `invalid_utf8`."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadRecord("invalid_utf8", str(error)) from error


def captions_of(record: dict[str, Any]) -> tuple[str, ...]:
    """Captions under the first of CAPTION_KEYS that the record has: a string, or a list of strings.

    Surrounding white space is removed. Raises BadRecord `missing_key`, `wrong_type`, `empty_caption` (one empty entry
    is enough: somebody has to know) or `invalid_utf8` (half a surrogate pair, which JSON can spell).
    """
    key = next((key for key in CAPTION_KEYS if record.get(key) is not None), None)
    if key is None:
        filled = [name for name, entry in record.items() if entry is not None]
        raise BadRecord("missing_key", f"none of {', '.join(CAPTION_KEYS)} among {', '.join(filled) or 'no keys'}")
    value = record[key]
    captions = value if isinstance(value, list) else [value]
    for caption in captions:
        if not isinstance(caption, str):
            raise BadRecord("wrong_type", f"{key}: expected text, found {json_type(caption)}")
    captions = [caption.strip() for caption in captions]
    if not captions or "" in captions:
        which = f"caption {captions.index('') + 1} of {len(captions)}" if len(captions) > 1 else "the caption"
        raise BadRecord("empty_caption", f"{key}: {which} is empty" if captions else f"{key}: the list is empty")
    for caption in captions:
        check_encodable(caption, key)
    return tuple(captions)


def captions_beside(record: dict[str, Any], texts: list[str]) -> tuple[str, ...]:
    """Captions of a record, and those texts of other files that differ from them. Raises BadRecord as `captions_of`
    does."""
    captions: tuple[str, ...] = ()
    if any(record.get(key) is not None for key in CAPTION_KEYS):
        captions = captions_of(record)
    for text in texts:
        captions += tuple(caption for caption in captions_of({"caption": text}) if caption not in captions)
    if not captions:
        keys = f", and its JSON has none of {', '.join(CAPTION_KEYS)}" if record else ""
        raise BadRecord("missing_key", f"the picture has no text of its name (.txt, .caption or .json){keys}")
    return captions


def text_of(record: dict[str, Any], key: str = "text") -> str:
    """The text under `key`, unchanged. Raises BadRecord as `captions_of` does, or `empty_text`."""
    text = record.get(key)
    if text is None:
        raise BadRecord("missing_key", f"no {key} among {', '.join(map(str, record)) or 'no keys'}")
    if not isinstance(text, str):
        raise BadRecord("wrong_type", f"{key}: expected text, found {json_type(text)}")
    if not text.strip():
        raise BadRecord("empty_text", f"{key}: the text is empty")
    check_encodable(text, key)
    return text


def path_of(value: Any, key: str, root: str) -> Path | str:
    """Path of an image that a record names, under the corpus's folder or URL. Raises BadRecord."""
    if not isinstance(value, str):
        raise BadRecord("wrong_type", f"{key}: expected text, found {json_type(value)}")
    if value.startswith("data:") or "://" in value:
        raise BadRecord(
            "unsafe_path", f"{key}: {value[:80]!r} is a URL, and pictures are not fetched: store them as files"
        )
    try:
        name = inside(value)
    except BadRecord as bad:
        raise BadRecord(bad.reason, f"{key}: {bad.detail} {root}; write it from there, or pass --image-root") from bad
    check_encodable(value, key)
    return f"{root}/{name}" if "://" in root else Path(root) / name


def given_id(record: dict[str, Any], default: str) -> str:
    """The record's own id, a string or an integer, or else `default`. Raises BadRecord `wrong_type`."""
    value = record.get("id")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise BadRecord("wrong_type", f"id: expected text or an integer, found {repr(value)[:80]}")
    check_encodable(str(value), "id")
    return str(value)


def inside(name: str) -> PurePosixPath:
    """A name from the data as a relative path. Raises BadRecord `unsafe_path` if it leaves its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise BadRecord("unsafe_path", f"{name[:200]!r} is not a path inside the corpus folder")
    return path


def printable(name: str) -> str:
    """A name as valid UTF-8: other bytes of a file name are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def check_encodable(text: str, key: str) -> None:
    """Raises BadRecord `invalid_utf8` for text that UTF-8 cannot encode (lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRecord("invalid_utf8", f"{key}: {error}") from error


def json_type(value: Any) -> str:
    """JSON's name for the type of a value."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
