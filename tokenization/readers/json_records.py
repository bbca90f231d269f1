"""JSON lines (.jsonl), or one list of objects (.json, as LLaVA has it); images are separate files.

A record is one of these, and a file holds one kind, shown by its first record that tells:

    {"image": "images/a.png", "caption": "a cat"}                     a picture with its caption
    {"text": "..."}                                                   plain text
    {"image": "a.png", "conversations": [{"from": "human", ...}]}     a conversation, with or without pictures
    {"image_list": ["a.png", "b.png"], "instruction_list": ["..."]}   picture editing
    {"parts": [{"image": "a.png"}, {"text": "..."}]}                  texts and pictures in this order

Paths are relative to the folder of the file. `captions` (a list) and `text` are read like `caption`, `file_name`
(Hugging Face's imagefolder) and `images` (a list) like `image`, `messages` like `conversations`; `id` is optional.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from tokenization.readers.document import (
    CAPTION_PAIR,
    CONVERSATION,
    EDIT,
    INTERLEAVED,
    TEXT,
    BadRecord,
    DamagedFile,
    Document,
    ItemStream,
    OpenFile,
    Picture,
    Reject,
    Text,
    captions_of,
    given_id,
    json_type,
    parse_object,
    path_of,
    text_of,
)
from tokenization.readers.turns import conversation_parts, edit_parts
from tokenization.readers.unread import unread_keys

PICTURE_KEYS = ("image", "file_name", "images")
TURN_KEYS = ("conversations", "messages")
RECORDS_TO_TELL = 1000
"""How far to look for a record that tells what a file holds."""
BYTES_TO_TELL = 1 << 24
"""How much of a list of objects is read for that."""


def kind_of(file: BinaryIO, name: str) -> str | None:
    """Kind of documents, from the first record with a key that shows it, or None."""
    return next((kind for record in _first(file, name) if (kind := kind_of_record(record))), None)


def unread(file: BinaryIO, name: str, kind: str) -> list[str]:
    """Keys of the first records that have content and are not read."""
    return unread_keys(_first(file, name), kind)


def _first(file: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    if name.lower().endswith(".jsonl"):
        records = (_object(without_mark(line)) for line in islice(file, RECORDS_TO_TELL))
    else:
        records = (record for _, record in islice(_objects(file.read(BYTES_TO_TELL)), RECORDS_TO_TELL))
    return (record for record in records if isinstance(record, dict))


def kind_of_record(record: dict[str, Any]) -> str | None:
    """Kind of documents of a record with these keys."""
    if any(key in record for key in TURN_KEYS):
        return CONVERSATION
    if "image_list" in record:
        return EDIT
    if "parts" in record:
        return INTERLEAVED
    if any(key in record for key in PICTURE_KEYS):
        return CAPTION_PAIR
    return TEXT if "text" in record else None


def scan(file: OpenFile) -> tuple[int, str]:
    """Count the records and hash the file, without the images."""
    (path,) = file.paths
    digest, records = hashlib.sha256(), 0
    if path.suffix.lower() == ".jsonl":
        with open(path, "rb") as lines:
            for line in lines:
                digest.update(line)
                records += 1
        return records, digest.hexdigest()
    data = path.read_bytes()
    return sum(1 for _ in _objects(data)), hashlib.sha256(data).hexdigest()


def read(file: OpenFile, start: int) -> ItemStream:
    """Records from number `start` on; blank lines are skipped."""
    (path,) = file.paths
    records = lines_from(path) if path.suffix.lower() == ".jsonl" else _objects(path.read_bytes())
    for number, record in islice(records, start, None):
        if record is None:
            continue
        where = f"{file.name}:{number + 1}"
        identity = where
        try:
            if isinstance(record, bytes):
                record = parse_object(record)
            elif isinstance(record, DamagedFile):
                raise BadRecord("invalid_json", str(record))
            elif isinstance(record, BadRecord):
                raise record
            elif not isinstance(record, dict):
                raise BadRecord("invalid_json", f"expected an object, found {json_type(record)}")
            names = pictures_of(record, file.root)
            place = names[0][0] if file.kind == CAPTION_PAIR and names else where
            identity = given_id(record, place)
            parts = parts_of(record, file.kind, [path for _, path in names], file.root)
            document = Document(identity, file.source, place, file.kind, parts)
        except BadRecord as bad:
            yield number, Reject(identity, file.source, where, bad.reason, bad.detail)
        else:
            yield number, document


def parts_of(record: dict[str, Any], kind: str, pictures: list[Path | str], root: str) -> tuple[Text | Picture, ...]:
    """Parts of a record. Raises BadRecord."""
    if kind == TEXT:
        return (Text((text_of(record),)),)
    if kind == EDIT:
        return edit_parts(pictures, record.get("instruction_list"), "instruction_list")
    if kind == CONVERSATION:
        key = next((key for key in TURN_KEYS if key in record), TURN_KEYS[0])
        return conversation_parts(record.get(key), pictures, key)
    if kind == INTERLEAVED:
        return ordered_parts(record.get("parts"), root)
    if len(pictures) != 1:
        reason = "several_pictures" if pictures else "missing_key"
        raise BadRecord(reason, f"{len(pictures) or 'no'} image among {', '.join(record) or 'no keys'}")
    return (Picture(pictures[0]), Text(captions_of(record)))


def pictures_of(record: dict[str, Any], root: str) -> list[tuple[str, Path | str]]:
    """Name and path of the images that a record lists. Raises BadRecord."""
    key = next((key for key in (*PICTURE_KEYS, "image_list") if record.get(key) is not None), None)
    if key is None:
        return []
    names = record[key] if isinstance(record[key], list) else [record[key]]
    return [(name, path_of(name, key, root)) for name in names]


def picture_names(path: Path) -> Iterator[str]:
    """Names of all images in the records of a file, unchanged; invalid records name none."""
    records = lines_from(path) if path.suffix.lower() == ".jsonl" else _objects(path.read_bytes())
    for _, record in records:
        record = _object(record) if isinstance(record, bytes) else record
        if not isinstance(record, dict):
            continue
        parts = record.get("parts")
        for holder in [record, *(parts if isinstance(parts, list) else [])]:
            for key in (*PICTURE_KEYS, "image_list") if isinstance(holder, dict) else ():
                value = holder.get(key)
                yield from (name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str))


def ordered_parts(parts: Any, root: str) -> tuple[Text | Picture, ...]:
    """Interleaved parts of `{"parts": [{"image": ...}, {"text": ...}]}`. Raises BadRecord."""
    if not isinstance(parts, list) or not parts:
        raise BadRecord("wrong_type", f"parts: expected a list of parts, found {json_type(parts) if parts else 'none'}")
    found: list[Text | Picture] = []
    for number, part in enumerate(parts):
        if not isinstance(part, dict):
            raise BadRecord("wrong_type", f"parts[{number}]: expected an object, found {json_type(part)}")
        if part.get("image") is not None and part.get("text") is not None:
            raise BadRecord("wrong_type", f"parts[{number}]: has an image and a text: write a part for each")
        if "image" in part:
            found.append(Picture(path_of(part["image"], f"parts[{number}]", root)))
        else:
            found.append(Text((text_of(part),)))
    return tuple(found)


def lines_from(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Number and bytes of the lines, None for blank ones."""
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            yield number, (without_mark(line) if number == 0 else line) if line.strip() else None


def without_mark(line: bytes) -> bytes:
    """The line without a byte-order mark."""
    return line.removeprefix(b"\xef\xbb\xbf")


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(line)
    except BadRecord:
        return None


def _objects(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of the entries of a JSON list, parsed one at a time; BadRecord for an object with a key twice, and
    DamagedFile as the last one if the list is invalid, or if more follows it."""
    text = without_mark(data).decode("utf-8", "surrogateescape")  # of other bytes, halves that `check_encodable` finds
    twice: list[str] = []
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _object_of(pairs, twice))
    number, at, wanted = 0, _skip(text, 0), "["
    try:
        while at < len(text):
            if text[at] != wanted and not (text[at] == "]" and number):
                raise ValueError(f"expected {wanted!r} at character {at:,}")
            if wanted == "[":
                at = _skip(text, at + 1)
            if text[at : at + 1] == "]":
                if _skip(text, at + 1) < len(text):
                    raise ValueError(f"more follows the list at character {_skip(text, at + 1):,}: a file is one list")
                return
            at = _skip(text, at + (wanted == ","))
            value, at = decoder.raw_decode(text, at)
            yield (
                number,
                BadRecord("invalid_json", f"the key {twice[0][:60]!r} stands twice in an object") if twice else value,
            )
            twice.clear()
            number, wanted, at = number + 1, ",", _skip(text, at)
        raise ValueError("it ends inside the list")
    except (ValueError, RecursionError) as error:
        yield number, DamagedFile(str(error) or "nested too deeply")


def _object_of(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    """The object of these keys and values; keys that stand twice are added to `twice`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice += [name for name in names if names.count(name) > 1]
    return found


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
