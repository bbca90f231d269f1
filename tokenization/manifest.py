"""What turns published parts into a dataset: index.json, lengths.npz, rejects.jsonl and, last, manifest.json."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tokenization.files import write_atomically
from tokenization.parts import PARTS, PartRecord
from tokenization.sample import KINDS

FORMAT_VERSION = 1
CREATED_BY = "tokenization/shard_images.py"
JOB, MANIFEST, INDEX = "job.json", "manifest.json", "index.json"
LENGTHS, REJECTS = "lengths.npz", "rejects.jsonl"


def finish_dataset(output: Path, job: dict[str, Any], records: list[PartRecord]) -> dict[str, Any]:
    """Write the dataset's own files from the records of all its parts, in order. Returns the manifest.

    Nothing in them depends on the time, the machine or the number of attempts, so the same job gives the same bytes.
    """
    shards = [in_dataset(record, shard) for record in records for shard in record.shards]
    index = (json.dumps({"version": 2, "shards": shards}, sort_keys=True) + "\n").encode()
    lengths = lengths_file(records)
    files = [
        {"file": info["basename"], "bytes": info["bytes"], "sha256": info["hashes"]["sha256"]}
        for info in (shard["raw_data"] for shard in shards)
    ]
    lengths_hash = hashlib.sha256(lengths).hexdigest()
    manifest = {
        "format_version": FORMAT_VERSION,
        "created_by": CREATED_BY,
        "fingerprint": dataset_fingerprint([file["sha256"] for file in files], lengths_hash),
        "tokenizer": job["tokenizer"],
        "vq": job["vq"],
        "counts": counts(records),
        "rejects": dict(sorted(sum((record.reasons() for record in records), Counter()).items())),
        "kinds": list(KINDS),
        "sources": documents_by_source(records),
        "index": {"file": INDEX, "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        "lengths": {"file": LENGTHS, "bytes": len(lengths), "sha256": lengths_hash},
        "shards": files,
    }
    write_atomically(output / LENGTHS, lengths)
    write_rejects(output, [reject for record in records for reject in record.rejects])
    write_atomically(output / INDEX, index)
    write_atomically(output / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def write_rejects(output: Path, rejects: Iterable[dict[str, str]]) -> None:
    """rejects.jsonl: one line a document that was put aside."""
    lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
    write_atomically(output / REJECTS, lines.encode())


def dataset_fingerprint(shard_hashes: list[str], lengths_hash: str) -> str:
    """The identity of a dataset: SHA-256 over the hashes of its shards, in order, and of its length index."""
    return hashlib.sha256("\n".join([*shard_hashes, lengths_hash]).encode()).hexdigest()


def in_dataset(record: PartRecord, shard: dict[str, Any]) -> dict[str, Any]:
    """A part's MDS index entry with its path from the dataset folder."""
    raw = shard["raw_data"]
    return shard | {"raw_data": raw | {"basename": f"{PARTS}/{record.index:05d}/{raw['basename']}"}}


def lengths_file(records: list[PartRecord]) -> bytes:
    """The bytes of lengths.npz, which says how long every document is without opening a shard.

    text_offsets int64 [documents + 1]: where each document's entries in text_lengths begin; text_lengths int32 [texts],
    in tokens; image_tokens int32 [documents], codes alone; kinds uint8 [documents], positions in the manifest's kinds.
    """
    texts = [lengths for record in records for lengths in record.text_lengths]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        text_offsets=np.cumsum([0, *(len(lengths) for lengths in texts)], dtype=np.int64),
        text_lengths=np.array([length for lengths in texts for length in lengths], dtype=np.int32),
        image_tokens=np.array([tokens for record in records for tokens in record.image_tokens], dtype=np.int32),
        kinds=np.array([kind for record in records for kind in record.kinds], dtype=np.uint8),
    )
    return buffer.getvalue()


def counts(records: list[PartRecord]) -> dict[str, int]:
    """What the dataset holds, in all."""
    texts = [lengths for record in records for lengths in record.text_lengths]
    return {
        "documents": len(texts),
        "pictures": sum(sum(record.pictures) for record in records),
        "texts": sum(map(len, texts)),
        "text_tokens": sum(map(sum, texts)),
        "image_tokens": sum(sum(record.image_tokens) for record in records),
    }


def documents_by_source(records: list[PartRecord]) -> dict[str, int]:
    """How many documents each source gave, in the order of the inputs."""
    documents: Counter[str] = Counter()
    for record in records:
        documents[record.source] += len(record.ids)
    return dict(documents)
