"""Image-text pairs by file name: KEY.jpg with KEY.txt, KEY.caption or KEY.json, in nested folders.

A text may have the picture's whole name before its own suffix, as KEY.jpg.txt. Each picture is a record, and so is each text
without a picture, which is a mistake that somebody should know of. KEY.json holds `caption`, `captions` or `text`, and
perhaps `id`; texts of several files are alternatives, unless they are equal. A picture in a format that is not read, as
KEY.heic, is a reject where KEY has a text and no other picture.
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
    captions_of,
    decode_utf8,
    given_id,
    parse_object,
    path_of,
    printable,
)
from tokenization.storage import Entry

TEXT_SUFFIXES = (".json", ".txt", ".caption")
NOT_READ = frozenset(["heic", "heif", "svg", "jxl", "psd", "ico", "eps", "dng", "cr2", "cr3", "nef", "arw"])
"""Suffixes of pictures that are not decoded; in lower case and without the dot."""
RECORDS_AT_ONCE = 1000
"""Records that are worked on together: a unit of work, of which a kill can lose no more than this."""


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in lower case and without the dot."""
    return posixpath.splitext(name)[1].lower().removeprefix(".")


def is_picture(name: str) -> bool:
    """Whether a file name is that of an image."""
    return suffix_of(name) in PICTURE_SUFFIXES


def is_text(name: str) -> bool:
    """Whether a file name may be that of an image's text."""
    return f".{suffix_of(name)}" in TEXT_SUFFIXES


def key_of(name: str) -> str:
    """Common name of an image and its texts."""
    stem = posixpath.splitext(name)[0]
    whole = is_text(name) and suffix_of(stem) in PICTURE_SUFFIXES | NOT_READ
    return posixpath.splitext(stem)[0] if whole else stem


def pictures_among(names: list[str]) -> list[str]:
    """The images, and images in unsupported formats that have a text and no supported counterpart."""
    read = [name for name in names if is_picture(name)]
    keys = {key_of(name) for name in names if is_text(name)} - {key_of(name) for name in read}
    return read + [name for name in names if suffix_of(name) in NOT_READ and key_of(name) in keys]


def has_pairs(entries: list[Entry]) -> bool:
    """Whether any text file has the name of an image."""
    keys = {key_of(name) for name in pictures_among([entry.name for entry in entries])}
    return any(is_text(entry.name) and key_of(entry.name) in keys for entry in entries)


def units_of(entries: list[Entry]) -> list[CorpusFile]:
    """All images and texts of a folder as units of work, sorted by name; names are relative to the folder."""
    pictures = set(pictures_among([entry.name for entry in entries]))
    keys: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.name in pictures or is_text(entry.name):
            keys.setdefault(key_of(entry.name), []).append(entry)
    units, members, records = [], [], 0
    for _, group in sorted(keys.items()):
        members += sorted(group, key=lambda entry: entry.name)
        records += max(1, sum(entry.name in pictures for entry in group))
        if records >= RECORDS_AT_ONCE:
            units.append(_unit(members))
            members, records = [], 0
    return [*units, _unit(members)] if members else units


def _unit(members: list[Entry]) -> CorpusFile:
    texts = tuple(entry.path for entry in members if is_text(entry.name))
    listed = tuple((entry.name, entry.size) for entry in members)
    return CorpusFile(members[0].name, texts, sum(entry.size for entry in members), listed)


def scan(file: OpenFile) -> tuple[int, str]:
    """Number of records, and a hash of all names and sizes and of the texts."""
    digest = hashlib.sha256(repr(file.members).encode())
    for path in file.paths:
        digest.update(path.read_bytes())
    return len(_records(file)), digest.hexdigest()


def read(file: OpenFile, start: int) -> ItemStream:
    """Records from number `start` on."""
    for number, (name, texts) in enumerate(_records(file)):
        if number < start:
            continue
        where = printable(name)
        identity = where
        try:
            if is_text(name):
                raise BadRecord("missing_key", f"no picture of the name of {where} beside it")
            if suffix_of(name) in NOT_READ:
                raise BadRecord("not_a_picture", f".{suffix_of(name)} is not read: save it as JPEG, PNG or WebP")
            records = [parse_object(path.read_bytes()) for path in texts if path.suffix.lower() == ".json"]
            record = records[0] if records else {}
            identity = given_id(record, where)
            more = [caption for other in records[1:] for caption in captions_of(other)]
            more += [decode_utf8(path.read_bytes()) for path in texts if path.suffix.lower() != ".json"]
            captions = captions_beside(record, more)
            parts = (Picture(path_of(name, "name", file.root)), Text(captions))
            document = Document(identity, file.source, where, file.kind, parts)
        except BadRecord as bad:
            yield number, Reject(identity, file.source, where, bad.reason, bad.detail)
        else:
            yield number, document


def _records(file: OpenFile) -> list[tuple[str, list[Path]]]:
    """Each image with its texts, in the order of TEXT_SUFFIXES; and each text without an image, alone."""
    names = [name for name, _ in file.members]
    pictures = [name for name in names if not is_text(name)]
    pictured = {posixpath.splitext(name)[0] for name in pictures} | set(pictures)
    texts: dict[str, list[tuple[int, Path]]] = {}
    for name, path in zip((name for name in names if is_text(name)), file.paths, strict=True):
        place = TEXT_SUFFIXES.index(f".{suffix_of(name)}")
        texts.setdefault(posixpath.splitext(name)[0], []).append((place, path))
    records: list[tuple[str, list[Path]]] = []
    for name in names:
        stem = posixpath.splitext(name)[0]
        if not is_text(name):
            own = sorted([*texts.get(stem, []), *texts.get(name, [])], key=lambda text: text[0])
            records.append((name, [path for _, path in own]))
        elif stem not in pictured:
            records.append((name, []))
    return records
