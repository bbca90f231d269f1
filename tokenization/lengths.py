"""Length index of a dataset: the lengths of every document, so that rows are planned without opening shards.

Four arrays, each a .npy file under lengths/ that is mapped into memory, never loaded: for 100 million captioned
pictures they have 1.7 GB. Entry by entry they follow the layout of samples (see `sample.py`). A fifth, kept.npy, is there
if some documents are not to be used (see `duplicates.py`).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenization.files import sync, temporary_name
from tokenization.readers.document import KINDS
from tokenization.sample import CodedDocument, entry_lengths

LENGTHS = "lengths"
ARRAYS = {"offsets": np.int64, "lengths": np.int32, "layout": np.uint8, "kinds": np.uint8}
KEPT = f"{LENGTHS}/kept.npy"
AT_ONCE = 1 << 20  # documents that are gone through at a time


@dataclass(frozen=True, eq=False)
class LengthIndex:
    """Lengths of all documents: document d has the entries offsets[d] : offsets[d + 1] and is of kind KINDS[kinds[d]].

    offsets int64 [documents + 1]; lengths int32 [entries], tokens of a text or codes of a picture; layout uint8
    [entries]; kinds uint8 [documents]; shard_starts int64 [shards + 1], the first document of each shard. `folder` is
    where the arrays lie: with it, a copy for another process is mapped there again instead of being copied. kept uint8
    [documents], 0 for those that are not to be used; None if all are.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    layout: np.ndarray
    kinds: np.ndarray
    shard_starts: np.ndarray
    folder: Path | None = None
    kept: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.kinds)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return open_lengths, (self.folder, self.shard_starts, self.kept is not None)
        return LengthIndex, (self.offsets, self.lengths, self.layout, self.kinds, self.shard_starts, None, self.kept)

    def kept_of_shard(self, shard: int) -> np.ndarray:
        """Numbers int64 [n] of a shard's documents without duplicates, in order."""
        first, end = (int(at) for at in self.shard_starts[shard : shard + 2])
        return np.arange(first, end) if self.kept is None else first + np.flatnonzero(self.kept[first:end])

    def left_out(self) -> np.ndarray:
        """Numbers int64 [n] of dropped documents (duplicates), in order."""
        return np.zeros(0, np.int64) if self.kept is None else np.flatnonzero(self.kept == 0)

    def kept_by_shard(self) -> np.ndarray:
        """Number of documents of each shard without duplicates, int64 [shards]."""
        if self.kept is None:
            return np.diff(self.shard_starts)
        bounds = self.shard_starts.tolist()
        counts = [np.count_nonzero(self.kept[low:high]) for low, high in zip(bounds, bounds[1:])]
        return np.array(counts, dtype=np.int64)

    def kept_entries(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield lengths and layout of the entries of kept documents, some whole documents at a time."""
        for low in range(0, len(self), AT_ONCE):
            offsets = self.offsets[low : low + AT_ONCE + 1]
            lengths, layout = (array[int(offsets[0]) : int(offsets[-1])] for array in (self.lengths, self.layout))
            if self.kept is not None:
                chosen = np.repeat(self.kept[low : low + AT_ONCE] != 0, np.diff(offsets))
                lengths, layout = lengths[chosen], layout[chosen]
            yield lengths, layout


def open_lengths(folder: Path, shard_starts: np.ndarray, some_left_out: bool = False) -> LengthIndex:
    """Open the length index of a dataset folder. Its files are not verified: `open_dataset` has done that.

    some_left_out: whether the dataset has a kept.npy.
    """
    arrays = {}
    for name in (*ARRAYS, "kept") if some_left_out else ARRAYS:
        path = folder / LENGTHS / f"{name}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r").view(np.ndarray)  # whose slices cost a tenth of a memmap's
        except ValueError:  # an empty array cannot be mapped
            arrays[name] = np.load(path)
    return LengthIndex(**arrays, shard_starts=shard_starts, folder=folder)


def part_arrays(documents: Sequence[CodedDocument]) -> dict[str, np.ndarray]:
    """Length index of the documents of a part."""
    entries = [entry_lengths(document) for document in documents]
    return {
        "offsets": np.cumsum([0, *map(len, entries)], dtype=np.int64),
        "lengths": np.array([length for document in entries for length in document], dtype=np.int32),
        "layout": np.concatenate([np.zeros(0, np.uint8), *(document.layout for document in documents)]),
        "kinds": np.array([KINDS.index(document.kind) for document in documents], dtype=np.uint8),
    }


def as_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays as the bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def write_lengths(output: Path, parts: Iterable[Path], documents: int, entries: int) -> list[dict[str, Any]]:
    """Concatenate the lengths.npz of all parts, one in memory at a time -> a manifest entry for each file.

    ValueError if the parts have not as many documents and entries as they should.
    """
    folder = output / LENGTHS
    folder.mkdir(exist_ok=True)
    sizes = {"offsets": documents + 1, "lengths": entries, "layout": entries, "kinds": documents}
    temporary = {name: temporary_name(folder / f"{name}.npy") for name in ARRAYS}
    arrays = {name: _Array(temporary[name], sizes[name], dtype) for name, dtype in ARRAYS.items()}
    arrays["offsets"].append(np.zeros(1, np.int64))
    for part in parts:
        with np.load(part / "lengths.npz") as found:
            first = arrays["lengths"].filled
            arrays["offsets"].append(found["offsets"][1:] + first)
            for name in ("lengths", "layout", "kinds"):
                arrays[name].append(found[name])
    written = []
    for name, array in arrays.items():
        digest = array.close()
        path = folder / f"{name}.npy"
        os.replace(temporary[name], path)
        written.append({"file": f"{LENGTHS}/{path.name}", "bytes": path.stat().st_size, "sha256": digest})
    sync(folder)
    return written


def write_kept(output: Path, documents: int, left_out: np.ndarray) -> list[dict[str, Any]]:
    """Write kept.npy if documents with these numbers, in order, are dropped -> its manifest entry, in a list. Without
    any, an older file is removed."""
    path = output / KEPT
    if not len(left_out):
        path.unlink(missing_ok=True)
        return []
    temporary = temporary_name(path)
    array = _Array(temporary, documents, np.uint8)
    for low in range(0, documents, AT_ONCE):
        kept = np.ones(min(AT_ONCE, documents - low), np.uint8)
        kept[left_out[slice(*np.searchsorted(left_out, (low, low + AT_ONCE)))] - low] = 0
        array.append(kept)
    digest = array.close()
    os.replace(temporary, path)
    sync(path.parent)
    return [{"file": KEPT, "bytes": path.stat().st_size, "sha256": digest}]


class _Array:
    """A one-dimensional .npy file of known length, written in chunks."""

    def __init__(self, path: Path, size: int, dtype: type):
        self.size, self.dtype, self.filled = size, dtype, 0
        self.file, self.digest, self.path = open(path, "wb"), hashlib.sha256(), path  # noqa: SIM115
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(header, description)
        self._write(header.getvalue())

    def append(self, values: np.ndarray) -> None:
        self.filled += len(values)
        self._write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())

    def close(self) -> str:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self.filled != self.size:
            raise ValueError(f"{self.path}: {self.filled:,} entries instead of {self.size:,}")
        return self.digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
