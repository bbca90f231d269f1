"""Pictures and their texts as files of one name: KEY.jpg with KEY.txt, KEY.caption or KEY.json, in nested folders.

Each picture is a record, and so is each text without a picture, which is a mistake that somebody should know of. KEY.json
holds `caption`, `captions` or `text`, and perhaps `id`; texts of several files are alternatives, unless they are equal.
"""

from __future__ import annotations

import hashlib
import posixpath
from pathlib import Path

from tokenization.readers.document import (
    PICTURE_SUFFIXES,
    BadRecord,
    CorpusFile,
    Document,
    ItemStream,
    OpenFile,
    Picture,
    Reject,
    Text,
    captions_beside,
    decode_utf8,
    given_id,
    parse_object,
    path_of,
    printable,
)
from tokenization.storage import Entry

TEXT_SUFFIXES = (".json", ".txt", ".caption")
RECORDS_AT_ONCE = 1000
"""Records that are worked on together: a unit of work, of which a kill can lose no more than this."""


def is_picture(name: str) -> bool:
    """Whether a file's name is one of a picture."""
    return posixpath.splitext(name)[1].lower().removeprefix(".") in PICTURE_SUFFIXES


def is_text(name: str) -> bool:
    """Whether a file's name is one that may hold the text of a picture."""
    return posixpath.splitext(name)[1].lower() in TEXT_SUFFIXES


def has_pairs(entries: list[Entry]) -> bool:
    """Whether any of these files is a text that has the name of a picture."""
    pictures = {posixpath.splitext(entry.name)[0] for entry in entries if is_picture(entry.name)}
    return any(is_text(entry.name) and posixpath.splitext(entry.name)[0] in pictures for entry in entries)


def units_of(entries: list[Entry]) -> list[CorpusFile]:
    """All pictures and texts of a folder, in the order of their names, as units of work; names are those in the folder."""
    keys: dict[str, list[Entry]] = {}
    for entry in entries:
        if is_picture(entry.name) or is_text(entry.name):
            keys.setdefault(posixpath.splitext(entry.name)[0], []).append(entry)
    units, members, records = [], [], 0
    for _, group in sorted(keys.items()):
        members += sorted(group, key=lambda entry: entry.name)
        records += max(1, sum(is_picture(entry.name) for entry in group))
        if records >= RECORDS_AT_ONCE:
            units.append(_unit(members))
            members, records = [], 0
    return [*units, _unit(members)] if members else units


def _unit(members: list[Entry]) -> CorpusFile:
    texts = tuple(entry.path for entry in members if not is_picture(entry.name))
    listed = tuple((entry.name, entry.size) for entry in members)
    return CorpusFile(members[0].name, texts, sum(entry.size for entry in members), listed)


def scan(file: OpenFile) -> tuple[int, str]:
    """The number of records, and a hash of all names and sizes and of the texts."""
    digest = hashlib.sha256(repr(file.members).encode())
    for path in file.paths:
        digest.update(path.read_bytes())
    return len(_records(file)), digest.hexdigest()


def read(file: OpenFile, start: int) -> ItemStream:
    """The records from number `start` on."""
    for number, (name, texts) in enumerate(_records(file)):
        if number < start:
            continue
        where = printable(name)
        identity = where
        try:
            if not is_picture(name):
                raise BadRecord("missing_key", f"no picture of the name of {where} beside it")
            record = {} if ".json" not in texts else parse_object(texts[".json"].read_bytes())
            identity = given_id(record, where)
            more = [decode_utf8(texts[suffix].read_bytes()) for suffix in TEXT_SUFFIXES[1:] if suffix in texts]
            captions = captions_beside(record, more)
            parts = (Picture(path_of(name, "name", file.root)), Text(captions))
            document = Document(identity, file.source, where, file.kind, parts)
        except BadRecord as bad:
            yield number, Reject(identity, file.source, where, bad.reason, bad.detail)
        else:
            yield number, document


def _records(file: OpenFile) -> list[tuple[str, dict[str, Path]]]:
    """Each picture with its texts by their suffix; and each text that has no picture, with nothing."""
    names = [name for name, _ in file.members]
    texts: dict[str, dict[str, Path]] = {}
    for name, path in zip((name for name in names if not is_picture(name)), file.paths, strict=True):
        key, suffix = posixpath.splitext(name)
        texts.setdefault(key, {})[suffix.lower()] = path
    pictured = {posixpath.splitext(name)[0] for name in names if is_picture(name)}
    records: list[tuple[str, dict[str, Path]]] = []
    for name in names:
        key = posixpath.splitext(name)[0]
        if is_picture(name):
            records.append((name, texts.get(key, {})))
        elif key not in pictured:
            records.append((name, {}))
    return records
