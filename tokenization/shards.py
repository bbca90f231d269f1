"""Code shards: `open_dataset(folder_or_url)` gives documents by number, verified.

A dataset folder is written by `shard_images.py`: MDS shards under parts/, index.json (so that mosaicml-streaming reads
it too), lengths/, rejects.jsonl and manifest.json. Here samples are read by MDS's own reader, without the shared
memory and background threads of StreamingDataset, which end an epoch early and silently when a shard is damaged. A dataset
at a URL is read through a cache on a local disk (`shard_cache.py`), shard by shard as documents are asked for.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.system.errors import UserError
from tokenization.files import sha256_of
from tokenization.lengths import ARRAYS, KEPT, LENGTHS, LengthIndex, open_lengths
from tokenization.manifest import FORMAT_VERSION, INDEX, JOB, MANIFEST, SHAPES_VERSION, dataset_fingerprint
from tokenization.remote import inside, read_small
from tokenization.sample import from_mds
from tokenization.shard_cache import Cache, ShardCache
from tokenization.shard_files import ShardFiles
from tokenization.storage import is_remote

if TYPE_CHECKING:
    from tokenization.vq_base import VQ

MANGLED = re.compile(r"[a-z][a-z0-9+.-]+:/[^/].*")  # Path() of a URL
REMEDY = "run the shard_images.py command that made this dataset again: it makes what is damaged anew"


class CodeDataset:
    """Documents of a dataset by number. Made by `open_dataset`; picklable, safe for threads.

    `lengths` is the length index, which says how long each document is, and which are not to be used although they are
    there; it is mapped into memory, and again in every process that gets a copy of this. `cache` fetches shards into `folder`
    when they are needed; None if they lie there.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        index: dict[str, Any],
        lengths: LengthIndex,
        cache: ShardCache | None = None,
    ):
        self.folder = folder
        self.manifest = manifest
        self.cache = cache
        self.lengths = lengths
        self.fingerprint: str = manifest["fingerprint"]
        self._shards: list[dict[str, Any]] = index["shards"]
        self._bounds: list[int] = lengths.shard_starts.tolist()
        self._verified: set[int] = set()

    def __len__(self) -> int:
        return self._bounds[-1]

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Document `number`: id, source and kind str, texts list[str], and five read-only arrays.

        text_ids uint32 [tokens of all texts], text_lengths uint32 [texts], codes uint16 [codes of all pictures], grids
        uint16 [2 * pictures] (height, width, height, width ...) and layout uint8 [texts + pictures], which says how
        they follow each other; each may be empty. `sample.parts_of` gives them part by part.

        IndexError for a number out of range. UserError if the shard changed since it was written; every shard is
        hashed at its first use in a process. TryAgain if it is at a URL that does not answer.
        """
        shard, within = self._place(number)
        if self.cache:
            return from_mds(self.cache.read(shard, lambda: self._readers[shard][within]))
        if shard not in self._verified:
            self._verify(shard)
        return from_mds(self._readers[shard][within])

    def tokens(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids uint32 [n] of all texts of a document and codes uint16 [m] of all its images, both read-only.

        Much faster than the whole document. `lengths` says where each text and picture ends; where there is no text, or no
        picture, there is a zero that means nothing. Raises what `__getitem__` raises.
        """
        shard, within = self._place(number)
        if self.cache:
            found = self.cache.read(shard, lambda: self._files.read(shard, within, keep_open=False))
        else:
            if shard not in self._verified:
                self._verify(shard)
            found = self._files.read(shard, within)
        return found["text_ids"], found["codes"]

    def _place(self, number: int) -> tuple[int, int]:
        """Shard of a document, and its number there. Raises IndexError for a number out of range."""
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of a dataset of {len(self)}")
        shard = bisect_right(self._bounds, number) - 1
        return shard, number - self._bounds[shard]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_readers", "_files")} | {
            "_verified": set()
        }

    def verify(self) -> None:
        """Verify every shard's hash. Raises UserError with the first damaged one."""
        for shard in range(len(self._shards)):
            self._verify(shard)

    def _verify(self, shard: int) -> None:
        if self.cache:
            self.cache.read(shard, lambda: None)
            return
        check_file(self.folder, self.manifest["shards"][shard])
        self._verified.add(shard)

    @cached_property
    def _files(self) -> ShardFiles:
        return ShardFiles(self.folder, self._shards)

    @cached_property
    def _readers(self) -> list[Any]:
        from pretrain.system.light_imports import mds_reader

        readers = [mds_reader().from_json(str(self.folder), "", shard) for shard in self._shards]
        try:
            for reader in readers:
                reader.validate(allow_unsafe_types=False)  # no pickled columns: they could execute code
        except ValueError as error:
            raise UserError(f"{self.folder / INDEX}: cannot be trusted ({error})") from None
        return readers


def open_dataset(folder: str | Path, cache: Cache | None = None) -> CodeDataset:
    """Open a finished dataset, in a folder or, through a cache, at a URL that fsspec reads.

    Its own files are checked in full, its shards for presence and size; those at a URL are fetched, and checked in full,
    when one of their documents is first read. Raises UserError naming the file if something is missing or damaged, or if
    the dataset was never finished; TryAgain if a URL does not answer.
    """
    if is_remote(str(folder)):
        return _open_url(str(folder).rstrip("/"), cache)
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        if MANGLED.fullmatch(str(folder)) and not folder.exists():
            raise UserError(f"{folder}: only a folder is read here, no URL: copy the dataset to this machine")
        if (folder / JOB).is_file():
            raise UserError(f"{folder}: this dataset is not finished; run the same shard_images.py command again")
        if not folder.exists():
            raise UserError(f"{folder}: no such folder; name a dataset that shard_images.py made")
        raise UserError(f"{folder}: no {MANIFEST} in it; it is not a dataset made by shard_images.py")
    manifest = read_manifest(folder / MANIFEST)
    for entry in (manifest["index"], *manifest["lengths"]):
        check_file(folder, entry)
    for entry in manifest["shards"]:
        check_size(folder, entry)
    return _opened(folder, manifest)


def _open_url(url: str, cache: Cache | None) -> CodeDataset:
    if cache is None:
        raise UserError(
            f"{url}: a URL is read through a cache: name a folder for it on a disk of this node (data.cache, --cache)"
        )
    manifest = read_manifest(inside(url, MANIFEST))
    of_dataset = ShardCache(url, manifest, cache)
    for entry in (manifest["index"], *manifest["lengths"]):
        if entry["file"] not in {INDEX, KEPT, *(f"{LENGTHS}/{name}.npy" for name in ARRAYS)}:
            raise UserError(f"{url}/{MANIFEST}: damaged (names {entry['file']!r}); {REMEDY}")
        of_dataset.keep(entry)
    return _opened(of_dataset.folder, manifest, of_dataset)


def _opened(folder: Path, manifest: dict[str, Any], cache: ShardCache | None = None) -> CodeDataset:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if cache:
        for number, shard in enumerate(index["shards"]):
            shard["raw_data"]["basename"] = cache.shard_name(number)
    starts = np.cumsum([0, *(shard["samples"] for shard in index["shards"])])
    some_left_out = any(entry["file"] == KEPT for entry in manifest["lengths"])
    return CodeDataset(folder, manifest, index, open_lengths(folder, starts, some_left_out), cache)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a dataset's manifest from a file or a URL. Raises UserError if it is damaged or of another version."""
    try:
        content = read_small(path)
        manifest = json.loads(content)
        version = manifest["format_version"]
        if version not in (FORMAT_VERSION, SHAPES_VERSION):
            raise UserError(
                f"{path}: format version {version}, this code reads {FORMAT_VERSION} and {SHAPES_VERSION}; make the dataset again with "
                "shard_images.py, in another folder"
            )
        sound = dataset_fingerprint(manifest["shards"], manifest["lengths"]) == manifest["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); {REMEDY}") from error
    if not sound:
        raise UserError(f"{path}: damaged (its fingerprint does not fit its hashes); {REMEDY}")
    return manifest


def check_size(folder: Path, entry: dict[str, Any]) -> Path:
    """Path of a manifest file. Raises UserError if it is missing or has another size."""
    path = folder / entry["file"]
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: missing or not readable ({error.strerror}); {REMEDY}") from error
    if size != entry["bytes"]:
        raise UserError(f"{path}: {size:,} bytes instead of {entry['bytes']:,}; {REMEDY}")
    return path


def check_file(folder: Path, entry: dict[str, Any]) -> None:
    """Raises UserError unless a manifest file has its size and its SHA-256."""
    path = check_size(folder, entry)
    if sha256_of(path) != entry["sha256"]:
        raise UserError(f"{path}: its content changed since it was written (SHA-256 differs); {REMEDY}")


def check_vq(manifest: dict[str, Any], vq: VQ) -> None:
    """Raises UserError unless `vq` is the image tokenizer that made this dataset's codes."""
    made = manifest["vq"]
    if made["fingerprint"] != vq.fingerprint:
        raise UserError(
            f"the shards were made with the VQ model {made['name']!r} (fingerprint {made['fingerprint'][:12]}), but "
            f"{vq.name!r} has fingerprint {vq.fingerprint[:12]}; use the model that made them, or make the shards again"
        )
