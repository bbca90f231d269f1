"""JSON lines: pictures in a folder with their captions, or plain text.

A picture line is `{"image": "images/a.png", "caption": "a cat"}`, its path relative to the folder of the JSONL.
`captions` (a list) and `text` are read like `caption`, and `file_name` (Hugging Face's imagefolder) like `image`. A
plain-text line is `{"text": "..."}`. `id` is optional in both. A file holds one kind, shown by its first line that
tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from model.errors import UserError
from tokenization.readers.document import (
    CAPTION_PAIR,
    TEXT,
    BadRecord,
    CorpusFile,
    Document,
    ItemStream,
    Reject,
    captions_of,
    given_id,
    inside,
    json_type,
    parse_object,
    text_of,
)

PICTURE_KEYS = ("image", "file_name")
LINES_TO_TELL = 1000
"""How far to look for a line that tells whether a file holds pictures or plain text."""


def scan(path: Path) -> CorpusFile:
    """Count the lines of a JSONL file and hash them; pictures are not looked at."""
    digest, records = hashlib.sha256(), 0
    with open(path, "rb") as file:
        for line in file:
            digest.update(line)
            records += 1
    return CorpusFile(path, path.name, records, digest.hexdigest())


def kind_of(path: Path) -> str:
    """`caption_pair` or `text`: what the first line with a telling key shows. UserError if no line has one."""
    keys: list[str] = []
    with open(path, "rb") as file:
        for line in islice(file, LINES_TO_TELL):
            try:
                record = parse_object(without_mark(line))
            except BadRecord:
                continue
            if any(key in record for key in PICTURE_KEYS):
                return CAPTION_PAIR
            if "text" in record:
                return TEXT
            keys = keys or list(record)
    found = f"its first object has {', '.join(keys)}" if keys else "no line of it is a JSON object"
    raise UserError(
        f'{path}: {found}; a picture line is {{"image": "images/a.png", "caption": "a cat"}}, '
        'a text line is {"text": "..."}'
    )


def read(file: CorpusFile, source: str, kind: str, start: int) -> ItemStream:
    """The records of a JSONL file from number `start` on; blank lines are skipped."""
    for number, line in lines_from(file.path, start):
        where = f"{file.name}:{number + 1}"
        identity = where
        try:
            record = parse_object(line)
            if kind == TEXT:
                identity = given_id(record, where)
                document = Document(identity, source, where, TEXT, (text_of(record),), None)
            else:
                key = next((key for key in PICTURE_KEYS if record.get(key) is not None), None)
                if key is None:
                    raise BadRecord("missing_key", f"no image among {', '.join(record) or 'no keys'}")
                if not isinstance(record[key], str):
                    raise BadRecord("wrong_type", f"{key}: expected text, found {json_type(record[key])}")
                picture = inside(record[key])
                identity = given_id(record, str(picture))
                document = Document(
                    identity, source, str(picture), CAPTION_PAIR, captions_of(record), file.path.parent / picture
                )
        except BadRecord as bad:
            yield number, Reject(identity, source, where, bad.reason, bad.detail)
        else:
            yield number, document


def lines_from(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of the lines that are not blank, from number `start` on."""
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if number >= start and line.strip():
                yield number, without_mark(line) if number == 0 else line


def without_mark(line: bytes) -> bytes:
    """The line without the byte-order mark that some editors put first in a file."""
    return line.removeprefix(b"\xef\xbb\xbf")
