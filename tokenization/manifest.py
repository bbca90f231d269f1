"""Finishing of a dataset: index.json, lengths/, rejects.jsonl and, last, manifest.json.

No shard is read: records and the length indices of the parts are merged. Counts are cross-checked, and every shard must be
there with its size; its hash was verified by the worker that wrote or found it. Duplicates between files are found here;
they stay in the shards, and lengths/kept.npy excludes them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.system.disk import writing
from tokenization.duplicates import repeats
from tokenization.encode import TooManyRejects
from tokenization.encoder_record import distinct
from tokenization.files import is_temporary, temporary_name, write_atomically
from tokenization.filters import DUPLICATE
from tokenization.frames import merged
from tokenization.lengths import LENGTHS, write_kept, write_lengths
from tokenization.parts import FILES, PARTS, DamagedPart, FileRecord, PartRecord, contents_of
from tokenization.readers.document import KINDS, Reject

FORMAT_VERSION = 2
SHAPES_VERSION = 3
"""Of a dataset whose pictures have several shapes: what reads only squares must not take it for one of them."""
CREATED_BY = "tokenization/shard_images.py"
JOB, MANIFEST, INDEX, REJECTS = "job.json", "manifest.json", "index.json", "rejects.jsonl"


def finish_dataset(output: Path, job: dict[str, Any], files: list[FileRecord]) -> dict[str, Any]:
    """Write the dataset's own files from the records of all input files, in order -> the manifest.

    Nothing in them depends on the time or the number of attempts and workers, so the same job gives the same bytes on
    machines of one kind; `encoders` in the manifest says which kinds there were. DamagedPart if a shard is missing or
    has another size, or if counts do not add up; TooManyRejects if there are no documents at all.
    """
    parts = [part for file in files for part in file.parts]
    if not any(part.counts["documents"] for part in parts):
        write_rejects(output, (output / PARTS / part.name / REJECTS for part in parts))
        raise TooManyRejects(f"none of the {rejects_of(files).total():,} documents can be used")
    for part in parts:
        check_sizes(output, part)
    clear_leftovers(output)
    shards = [in_dataset(part, shard) for part in parts for shard in part.shards]
    index = (json.dumps({"version": 2, "shards": shards}, sort_keys=True) + "\n").encode()
    counts = dict(sum((Counter(part.counts) for part in parts), Counter()))
    counts = {name: counts.get(name, 0) for name in ("documents", "pictures", "texts", "text_tokens", "image_tokens")}
    try:
        folders = [output / PARTS / part.name for part in parts]
        lengths = write_lengths(output, folders, counts["documents"], counts["pictures"] + counts["texts"])
        bits = job["filters"].get("duplicate_bits", -1)
        left_out = repeats(output, parts, bits) if bits >= 0 else np.zeros(0, np.int64)
        lengths += write_kept(output, counts["documents"], left_out)
    except (ValueError, OSError) as error:
        raise DamagedPart(f"{output}: the length indices of the parts do not fit ({error})") from error
    if sum(shard["samples"] for shard in shards) != counts["documents"]:
        raise DamagedPart(f"{output}: the shards have another number of documents than their parts")
    entries = [
        {"file": info["basename"], "bytes": info["bytes"], "sha256": info["hashes"]["sha256"]}
        for info in (shard["raw_data"] for shard in shards)
    ]
    rejects = rejects_of(files) + Counter({DUPLICATE: len(left_out)})
    first_frames = merged(part.first_frames for part in parts)
    manifest = {
        "format_version": SHAPES_VERSION if "shapes" in job["vq"] else FORMAT_VERSION,
        "created_by": CREATED_BY,
        "fingerprint": dataset_fingerprint(entries, lengths),
        "tokenizer": job["tokenizer"],
        "vq": job["vq"],
        "encoders": distinct([part.encoder for part in parts]),
        "filters": job["filters"],
        "counts": counts,
        **({"left_out": len(left_out)} if len(left_out) else {}),
        **({"first_frames": first_frames} if first_frames else {}),
        "rejects": dict(sorted(rejects.items())),
        "kinds": list(KINDS),
        "sources": documents_by_source(parts),
        "index": {"file": INDEX, "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        "lengths": lengths,
        "shards": entries,
    }
    write_rejects(
        output,
        (folder / REJECTS for folder in folders),
        (reject.as_json() for reject in repeated(output, files, left_out)),
    )
    write_atomically(output / INDEX, index)
    write_atomically(output / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def write_rejects(output: Path, files: Iterable[Path], more: Iterable[str] = ()) -> None:
    """Write rejects.jsonl: the lines of these files, and `more` lines without their newlines."""
    path = output / REJECTS
    temporary = temporary_name(path)
    try:
        with writing(path), open(temporary, "wb") as joined:
            for file in files:
                joined.write(file.read_bytes())
            joined.writelines(f"{line}\n".encode() for line in more)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def repeated(output: Path, files: list[FileRecord], left_out: np.ndarray) -> Iterator[Reject]:
    """Yield a reject for each duplicate document, by numbers in order."""
    first = 0
    for file in files:
        for part in file.parts:
            end = first + part.counts["documents"]
            numbers = left_out[slice(*np.searchsorted(left_out, (first, end)))] - first
            if len(numbers):
                ids, _ = contents_of(output, part)
                detail = "a picture looks like one of an earlier document, of another file"
                yield from (Reject(ids[number], part.source, file.name, DUPLICATE, detail) for number in numbers)
            first = end


def check_sizes(output: Path, part: PartRecord) -> None:
    """Raises DamagedPart unless all shards of a part are there with their sizes."""
    for shard in part.shards:
        info = shard["raw_data"]
        path = output / PARTS / part.name / info["basename"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DamagedPart(f"{path}: {error.strerror}") from error
        if size != info["bytes"]:
            raise DamagedPart(f"{path}: {size:,} bytes instead of {info['bytes']:,}")


def clear_leftovers(output: Path) -> None:
    """Remove temporary files of killed processes; all work is finished, so nobody writes any more."""
    for folder in (output, output / PARTS, output / FILES, output / LENGTHS):
        for entry in folder.glob(".*.tmp"):
            if is_temporary(entry) and entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def dataset_fingerprint(shards: list[dict[str, Any]], lengths: list[dict[str, Any]]) -> str:
    """Fingerprint of a dataset: SHA-256 over the hashes of its shards, in order, and of its length index."""
    return hashlib.sha256("\n".join(entry["sha256"] for entry in [*shards, *lengths]).encode()).hexdigest()


def in_dataset(part: PartRecord, shard: dict[str, Any]) -> dict[str, Any]:
    """A part's MDS index entry with its path relative to the dataset folder."""
    raw = shard["raw_data"]
    return shard | {"raw_data": raw | {"basename": f"{PARTS}/{part.name}/{raw['basename']}"}}


def rejects_of(files: list[FileRecord]) -> Counter[str]:
    """Number of rejects by reason."""
    return sum((Counter(part.rejects) for part in _parts(files)), Counter())


def documents_by_source(parts: list[PartRecord]) -> dict[str, int]:
    """Number of documents of each source, in the order of the inputs."""
    documents: dict[str, int] = {}
    for part in parts:
        documents[part.source] = documents.get(part.source, 0) + part.counts["documents"]
    return documents


def _parts(files: list[FileRecord]) -> Iterator[PartRecord]:
    return (part for file in files for part in file.parts)
