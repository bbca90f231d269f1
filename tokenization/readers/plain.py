"""Plain text files: one document each, or several separated by lines of `<|endoftext|>` alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tokenization.readers.document import (
    BadRecord,
    Document,
    ItemStream,
    OpenFile,
    Reject,
    Text,
    decode_utf8,
    printable,
    text_of,
)

SEPARATOR = b"<|endoftext|>"


def scan(file: OpenFile) -> tuple[int, str]:
    """Count the documents of these files and hash them."""
    digest, records = hashlib.sha256(), 0
    for path in file.paths:
        digest.update(f"{path.name!r} {path.stat().st_size}\n".encode())
        for document in documents_of(path):
            digest.update(document)
            records += 1
    return records, digest.hexdigest()


def read(file: OpenFile, start: int) -> ItemStream:
    """Documents from number `start` on; one of white space alone is rejected."""
    number = 0
    for path in file.paths:
        for within, data in enumerate(documents_of(path)):
            if number >= start:
                name = printable(path.name)
                identity = f"{name}:{within + 1}"
                try:
                    text = text_of({"text": decode_utf8(data)})
                except BadRecord as bad:
                    yield number, Reject(identity, file.source, name, bad.reason, bad.detail)
                else:
                    yield number, Document(identity, file.source, name, file.kind, (Text((text,)),))
            number += 1


def documents_of(path: Path) -> Iterator[bytes]:
    """Bytes of each document of a file; white space after the last separator is no document."""
    lines: list[bytes] = []
    some = False
    with open(path, "rb") as file:
        for line in file:
            if line.strip() == SEPARATOR:
                yield b"".join(lines)
                lines, some = [], True
            else:
                lines.append(line)
    last = b"".join(lines)
    if last.strip() or not some:
        yield last
