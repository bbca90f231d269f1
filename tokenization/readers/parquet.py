"""Parquet with pictures inside: a column `image` of bytes (or Hugging Face's struct of bytes and path) and captions.

Captions stand in `captions` (a list), `caption` or `text`; `id` is optional. A file with `text` and no `image` is plain
text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from model.errors import UserError
from tokenization.readers.document import (
    CAPTION_KEYS,
    CAPTION_PAIR,
    TEXT,
    BadRecord,
    CorpusFile,
    Document,
    ItemStream,
    Reject,
    captions_of,
    decode_utf8,
    given_id,
    text_of,
)

ROWS_AT_ONCE = 64


def scan(path: Path) -> CorpusFile:
    """The number of rows, and a hash of the footer (schema, offsets and statistics). UserError if it is damaged."""
    metadata = open_parquet(path).metadata
    with open(path, "rb") as file:
        file.seek(-8 - metadata.serialized_size, 2)
        digest = hashlib.sha256(file.read())
    return CorpusFile(path, path.name, metadata.num_rows, digest.hexdigest())


def kind_of(path: Path) -> str:
    """`caption_pair` or `text`, by the columns. UserError if they are neither."""
    names = open_parquet(path).schema_arrow.names
    if "image" in names and any(key in names for key in CAPTION_KEYS):
        return CAPTION_PAIR
    if "image" not in names and "text" in names:
        return TEXT
    raise UserError(
        f"{path}: its columns are {', '.join(names)}; name the pictures' bytes image, and their captions caption, "
        "captions or text (plain text: text alone)"
    )


def read(file: CorpusFile, source: str, kind: str, start: int) -> ItemStream:
    """The rows of a Parquet file from number `start` on, one group of rows in memory at a time."""
    parquet = open_parquet(file.path)
    columns = [name for name in ("id", "image", *CAPTION_KEYS) if name in parquet.schema_arrow.names]
    number = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if number + rows <= start:
            number += rows
            continue
        for batch in parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
            for record in records_of(batch):
                if number >= start:
                    yield number, item_of(record, f"{file.name}:{number + 1}", source, kind)
                number += 1


def item_of(record: dict[str, Any], where: str, source: str, kind: str) -> Document | Reject:
    """The document of a row, or why there is none."""
    identity = where
    try:
        record = {name: with_text(value) if name != "image" else value for name, value in record.items()}
        identity = given_id(record, where)
        if kind == TEXT:
            return Document(identity, source, where, TEXT, (text_of(record),), None)
        return Document(identity, source, where, CAPTION_PAIR, captions_of(record), picture_of(record))
    except BadRecord as bad:
        return Reject(identity, source, where, bad.reason, bad.detail)


def picture_of(record: dict[str, Any]) -> bytes:
    """The bytes of a row's picture. Raises BadRecord `missing_key` or `wrong_type`."""
    picture = record.get("image")
    if isinstance(picture, dict):
        picture = picture.get("bytes")
    if picture is None:
        raise BadRecord("missing_key", "image: the row has no picture bytes")
    if not isinstance(picture, bytes):
        raise BadRecord("wrong_type", f"image: expected bytes, found {type(picture).__name__}")
    return picture


def with_text(value: Any) -> Any:
    """A column's value, its bytes decoded as UTF-8. Raises BadRecord `invalid_utf8`."""
    if isinstance(value, bytes):
        return decode_utf8(value)
    return [with_text(entry) for entry in value] if isinstance(value, list) else value


def records_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow record batch; text stays bytes, so that one bad string does not spoil its batch."""
    import pyarrow

    def as_bytes(kind: pyarrow.DataType) -> pyarrow.DataType:
        if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
            return pyarrow.large_binary()
        if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
            return pyarrow.large_list(as_bytes(kind.value_type))
        return kind

    columns = {name: batch.column(name) for name in batch.schema.names}
    rows = {name: column.cast(as_bytes(column.type)).to_pylist() for name, column in columns.items()}
    return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]


def open_parquet(path: Path) -> Any:
    """A pyarrow ParquetFile; UserError if the file is none."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as Parquet ({message}); write or fetch it again") from error
