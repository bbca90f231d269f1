"""Arrow streams, as Hugging Face `datasets` saves a dataset to disk: data-NNNNN-of-NNNNN.arrow files.

What their columns mean is said in `columns.py`. The `datasets` package is not needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tokenization.readers.columns import ROWS_AT_ONCE, items_of, kind_of_schema
from tokenization.readers.document import DamagedFile, ItemStream, OpenFile
from tokenization.readers.unread import record_of_schema, unread_keys


def kind_of(file: BinaryIO, _name: str) -> str | None:
    """Kind of documents, from the columns. Raises DamagedFile if it is not an Arrow stream."""
    import pyarrow

    with _arrow_errors():
        return kind_of_schema(pyarrow.ipc.open_stream(file).schema)


def unread(file: BinaryIO, _name: str, kind: str) -> list[str]:
    """Columns that are not read. Raises DamagedFile if it is not an Arrow stream."""
    import pyarrow

    with _arrow_errors():
        return unread_keys([record_of_schema(pyarrow.ipc.open_stream(file).schema)], kind)


def scan(file: OpenFile) -> tuple[int, str]:
    """Number of rows, and a hash of the schema and of the sizes of all batches. Raises DamagedFile."""
    records, digest = 0, hashlib.sha256()
    for batch in batches_of(file.paths[0]):
        if not records:
            digest.update(repr(batch.schema.names).encode())
        records += batch.num_rows
        digest.update(f"{batch.num_rows} {batch.get_total_buffer_size()}\n".encode())
    return records, digest.hexdigest()


def read(file: OpenFile, start: int) -> ItemStream:
    """Rows from number `start` on. Raises DamagedFile."""
    number = 0
    for whole in batches_of(file.paths[0]):
        if kind_of_schema(whole.schema) != file.kind:
            raise DamagedFile(f"its columns are {', '.join(whole.schema.names)[:200]}, and not those of {file.kind}")
        for first in range(0, whole.num_rows, ROWS_AT_ONCE):
            batch = whole.slice(first, ROWS_AT_ONCE)
            if number + batch.num_rows > start:
                with _arrow_errors():
                    items = list(items_of(batch, file, number))
                yield from (item for item in items if item[0] >= start)
            number += batch.num_rows


def batches_of(path: Path) -> Iterator[Any]:
    """Record batches of a file, memory-mapped; all data but images is read once to verify it."""
    import pyarrow

    with _arrow_errors():
        stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
    while True:
        try:
            with _arrow_errors():
                batch = stream.read_next_batch()
                batch.validate(full=True)  # offsets of a damaged file may be out of range, and Arrow would follow them
        except StopIteration:
            return
        yield batch


@contextmanager
def _arrow_errors() -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DamagedFile(f"cannot be read as an Arrow stream ({line}); save the dataset again") from error
