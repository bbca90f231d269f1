"""Parquet files; `columns.py` has the meaning of their columns."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

from tokenization.readers.columns import COLUMNS, ROWS_AT_ONCE, items_of, kind_of_schema
from tokenization.readers.document import DamagedFile, ItemStream, OpenFile
from tokenization.readers.unread import record_of_schema, unread_keys


def kind_of(file: BinaryIO, _name: str) -> str | None:
    """Kind of documents, from the columns. Raises DamagedFile if it is not Parquet."""
    return kind_of_schema(open_parquet(file).schema_arrow)


def unread(file: BinaryIO, _name: str, kind: str) -> list[str]:
    """Columns that are not read. Raises DamagedFile if it is not Parquet."""
    return unread_keys([record_of_schema(open_parquet(file).schema_arrow)], kind)


def scan(file: OpenFile) -> tuple[int, str]:
    """Number of rows, and a hash of the footer (schema, offsets and statistics). Raises DamagedFile."""
    (path,) = file.paths
    metadata = open_parquet(path).metadata
    with open(path, "rb") as raw:
        raw.seek(-8 - metadata.serialized_size, 2)
        digest = hashlib.sha256(raw.read())
    return metadata.num_rows, digest.hexdigest()


def read(file: OpenFile, start: int) -> ItemStream:
    """Rows from number `start` on, one row group in memory at a time. Raises DamagedFile."""
    import pyarrow

    (path,) = file.paths
    parquet = open_parquet(path)
    schema = parquet.schema_arrow
    if kind_of_schema(schema) != file.kind:
        raise DamagedFile(f"its columns are {', '.join(schema.names)[:200]}, and not those of {file.kind}")
    columns = [name for name in COLUMNS if name in schema.names]
    number = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if number + rows <= start:
            number += rows
            continue
        try:
            for batch in parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
                for place, item in items_of(batch, file, number):
                    if place >= start:
                        yield place, item
                number += batch.num_rows
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DamagedFile(f"row group {group} cannot be read ({_first_line(error)})") from error


def open_parquet(source: Path | BinaryIO) -> Any:
    """Open a pyarrow ParquetFile. Raises DamagedFile."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(source)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DamagedFile(f"cannot be read as Parquet ({_first_line(error)}); write or fetch it again") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
