"""Direct reads of MDS shards: ids and codes of a document, without its other columns.

streaming's MDSReader opens the file for each document and decodes all columns, which costs ten times what training needs:
how long each text and picture is says the length index already. The layout of the format is mosaicml-streaming 0.13's: a
shard begins with uint32 [1 + documents + 1], their number and where each begins and the last ends; a document with
the sizes of its columns, uint32, then follow their values, in the order of the names; an array is a byte (4 * axes +
the base-2 logarithm of the bytes of a length), its lengths, and its values.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pretrain.system.errors import UserError

OPEN_SHARDS = 64
"""Shards that a process keeps open: rows in work at a time need no more, and an open file is a descriptor."""
WANTED: dict[str, np.dtype] = {"text_ids": np.dtype(np.uint32), "codes": np.dtype(np.uint16)}


class ShardFiles:
    """Shards of a dataset by its folder's index. Picklable; safe for threads."""

    def __init__(self, folder: Path, shards: list[dict[str, Any]]):
        self.folder = folder
        self.names = [shard["raw_data"]["basename"] for shard in shards]
        self._columns = [(tuple(shard["column_names"]), tuple(shard["column_encodings"])) for shard in shards]
        for number, shard in enumerate(shards):
            kinds = dict(zip(*self._columns[number], strict=True))
            wanted = {name: f"ndarray:{dtype}" for name, dtype in WANTED.items()}
            if any(shard["column_sizes"]) or any(kinds.get(name) != kind for name, kind in wanted.items()):
                raise UserError(f"{folder / self.names[number]}: columns {kinds} are not those of code shards")
        self._open: OrderedDict[int, tuple[BinaryIO, np.ndarray]] = OrderedDict()  # with the bounds of all documents

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, shard: int, number: int, keep_open: bool = True) -> dict[str, np.ndarray]:
        """`text_ids` uint32 [n] and `codes` uint16 [m] of document `number` of a shard, read-only, as MDS holds them.

        keep_open: False for files that somebody else may take away meanwhile. OSError if the file is not there; UserError
        if it is shorter than it says.
        """
        if not keep_open:
            with open(self.folder / self.names[shard], "rb", buffering=0) as once:
                return self._read(shard, number, once, self._bounds(shard, once, number, 2))
        opened = self._open.get(shard)
        if opened is None:
            file: BinaryIO = open(self.folder / self.names[shard], "rb", buffering=0)  # noqa: SIM115
            count = np.frombuffer(os.pread(file.fileno(), 4, 0), np.uint32)
            opened = self._open[shard] = file, self._bounds(shard, file, 0, int(count.sum()) + 1)
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)  # a thread that still reads it keeps it open
        file, bounds = opened
        return self._read(shard, number, file, bounds[number : number + 2])

    def _bounds(self, shard: int, file: BinaryIO, number: int, count: int) -> np.ndarray:
        """`count` numbers of a shard's header, uint32, from where document `number` begins on."""
        found = os.pread(file.fileno(), 4 * count, 4 * (1 + number))
        if len(found) < 4 * count:
            raise UserError(
                f"{self.folder / self.names[shard]}: document {number} cannot be read (it ends in its header)"
            )
        return np.frombuffer(found, np.uint32)

    def _read(self, shard: int, number: int, file: BinaryIO, bounds: np.ndarray) -> dict[str, np.ndarray]:
        names, _ = self._columns[shard]
        try:
            begin, end = bounds.tolist()
            data = os.pread(file.fileno(), end - begin, begin)
            sizes = struct.unpack_from(f"<{len(names)}I", data)
            found, at = {}, 4 * len(names)
            for name, size in zip(names, sizes):
                if name in WANTED:
                    axes, width = divmod(data[at], 4)
                    skipped = 1 + axes * (1 << width)
                    count, rest = divmod(size - skipped, WANTED[name].itemsize)
                    if rest or count < 0:
                        raise ValueError(f"column {name} has {size} bytes")
                    found[name] = np.frombuffer(data, WANTED[name], count, at + skipped)
                at += size
        except (struct.error, ValueError, IndexError) as error:
            raise UserError(f"{self.folder / self.names[shard]}: document {number} cannot be read ({error})") from None
        return found
