"""Parts: the unit of work, and the most that a kill can lose.

A part is some consecutive records of one file of the input. It is published by renaming its finished folder to
`parts/000012.0003` (file 12, part 3), so it is there whole or not at all. Beside its MDS shards lie lengths.npz,
rejects.jsonl and part.json, which says what is in it; its own checksum guards it. Where duplicates are looked for,
lengths.npz holds the hashes of the part's pictures and the ids of its documents too. When all parts of a file are there,
`files/000012.json` holds what their part.json say, and the input file is not needed any more.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.system.disk import writing
from tokenization.files import publish_folder, sha256_of, temporary_name, write_atomically
from tokenization.lengths import as_bytes, part_arrays
from tokenization.readers.document import Reject
from tokenization.sample import COLUMNS, CodedDocument, to_mds

PARTS, FILES = "parts", "files"
SHARD_BYTES = 1 << 26


class DamagedPart(Exception):
    """A published file differs from what was written."""


@dataclass(frozen=True)
class PartRecord:
    """Content of part.json. `shards` are the entries of the part's MDS index, `files` hashes of its other files.

    `fingerprint` is that of the whole input file, `counts` has documents, pictures, texts, text_tokens, image_tokens
    and entries, `rejects` counts by reason. `encoder` is what encoded it (`encoder_record.py`), {} in older datasets.
    `first_frames` counts pictures of which further frames are left out (`frames.merged`), {} if there are none.
    """

    file: int
    part: int
    source: str
    fingerprint: str
    counts: dict[str, int]
    rejects: dict[str, int]
    shards: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    first_frames: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the part's folder."""
        return f"{self.file:06d}.{self.part:04d}"


@dataclass(frozen=True)
class FileRecord:
    """Content of files/NNNNNN.json: all parts of one input file, and its number of records."""

    file: int
    name: str
    fingerprint: str
    records: int
    parts: list[PartRecord]


def part_folder(output: Path, file: int, part: int) -> Path:
    """Folder of a published part."""
    return output / PARTS / f"{file:06d}.{part:04d}"


def mds_writer() -> type:
    """streaming's MDSWriter; the first call imports it."""
    from pretrain.system.light_imports import mds_writer

    return mds_writer()


def write_part(
    output: Path,
    file: int,
    part: int,
    source: str,
    fingerprint: str,
    documents: list[CodedDocument],
    rejects: list[Reject],
    hashes: np.ndarray | None = None,
    encoder: dict[str, Any] | None = None,
    first_frames: dict[str, Any] | None = None,
) -> PartRecord:
    """Write the shards and part.json of a part, and publish it; an existing one is kept.

    hashes: uint64 [pictures, 4], the picture hashes of its documents, if duplicates are looked for. encoder: what
    encoded them, as `encoder_record.py` has it. first_frames: as in PartRecord.
    """
    folder = part_folder(output, file, part)
    temporary = temporary_name(folder)
    try:
        with writing(folder):
            content = (documents, rejects, hashes, encoder or {}, first_frames or {})
            record = _prepare_part(temporary, file, part, source, fingerprint, *content)
            publish_folder(temporary, folder)
    except OSError:
        # another worker made the same part meanwhile, from the same records; if all is merged by now, it also removed
        # unpublished files
        shutil.rmtree(temporary, ignore_errors=True)  # frees space on a full disk
        if not folder.exists():
            raise
        return read_part(output, file, part)
    return record


def _prepare_part(
    temporary: Path,
    file: int,
    part: int,
    source: str,
    fingerprint: str,
    documents: list[CodedDocument],
    rejects: list[Reject],
    hashes: np.ndarray | None,
    encoder: dict[str, Any],
    first_frames: dict[str, Any],
) -> PartRecord:
    """Write all files of a part into a temporary folder."""
    shutil.rmtree(temporary, ignore_errors=True)
    with mds_writer()(columns=COLUMNS, out=str(temporary), hashes=["sha256"], size_limit=SHARD_BYTES) as writer:
        for document in documents:
            writer.write(to_mds(document))
    arrays = part_arrays(documents)
    if hashes is not None:
        ids = json.dumps([document.id for document in documents]).encode()
        arrays |= {"hashes": hashes, "ids": np.frombuffer(ids, np.uint8)}
    (temporary / "lengths.npz").write_bytes(as_bytes(arrays))
    lines = "".join(reject.as_json() + "\n" for reject in rejects)
    (temporary / "rejects.jsonl").write_text(lines, encoding="utf-8")
    record = PartRecord(
        file=file,
        part=part,
        source=source,
        fingerprint=fingerprint,
        counts=counts_of(documents),
        rejects=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        shards=json.loads((temporary / "index.json").read_text(encoding="utf-8"))["shards"],
        files={name: sha256_of(temporary / name) for name in ("lengths.npz", "rejects.jsonl")},
        encoder=encoder,
        first_frames=first_frames,
    )
    (temporary / "part.json").write_bytes(sealed(asdict(record)))
    return record


def counts_of(documents: list[CodedDocument]) -> dict[str, int]:
    """Totals of these documents."""
    return {
        "documents": len(documents),
        "pictures": sum(len(document.codes) for document in documents),
        "texts": sum(len(document.text_ids) for document in documents),
        "text_tokens": sum(len(ids) for document in documents for ids in document.text_ids),
        "image_tokens": sum(codes.size for document in documents for codes in document.codes),
        "entries": sum(len(document.layout) for document in documents),
    }


def read_part(output: Path, file: int, part: int) -> PartRecord:
    """Read and verify a published part, all files -> its record. Raises DamagedPart."""
    record = read_part_record(output, file, part)
    check_part(output, record)
    return record


def read_part_record(output: Path, file: int, part: int) -> PartRecord:
    """Read the record of a published part, verifying only the record. Raises DamagedPart."""
    path = part_folder(output, file, part) / "part.json"
    try:
        return PartRecord(**unsealed(path))
    except TypeError as error:
        raise DamagedPart(f"{path}: {error}") from error


def check_part(output: Path, record: PartRecord) -> None:
    """Verify the hashes of all files of a part. Raises DamagedPart with the file's name."""
    folder = output / PARTS / record.name
    wanted = dict(record.files)
    wanted |= {shard["raw_data"]["basename"]: shard["raw_data"]["hashes"]["sha256"] for shard in record.shards}
    for name, digest in wanted.items():
        try:
            sound = sha256_of(folder / name) == digest
        except OSError as error:
            raise DamagedPart(f"{folder / name}: {error.strerror}") from error
        if not sound:
            raise DamagedPart(f"{folder / name} has another checksum than when it was written")


def contents_of(output: Path, record: PartRecord) -> tuple[list[str], np.ndarray]:
    """Ids of a part's documents, and the hashes of its images [n, 4], for finding duplicates in later parts."""
    folder = output / PARTS / record.name
    with np.load(folder / "lengths.npz") as arrays:
        hashes = arrays["hashes"] if "hashes" in arrays else np.zeros((0, 4), np.uint64)
        if "ids" in arrays:
            return json.loads(arrays["ids"].tobytes()), hashes
    from pretrain.system.light_imports import mds_reader

    readers = [mds_reader().from_json(str(folder), "", dict(shard)) for shard in record.shards]
    return [reader[number]["id"] for reader in readers for number in range(reader.size)], hashes


def write_file_record(output: Path, record: FileRecord) -> None:
    """Record that all parts of a file are published."""
    path = file_record_path(output, record.file)
    path.parent.mkdir(exist_ok=True)
    try:
        write_atomically(path, sealed(asdict(record)))
    except FileNotFoundError:  # another worker wrote it, merged everything, and removed unpublished files
        if not path.exists():
            raise


def read_file_record(output: Path, file: int) -> FileRecord | None:
    """Record of a finished file, or None. Raises DamagedPart if its checksum does not match."""
    path = file_record_path(output, file)
    if not path.exists():
        return None
    stored = unsealed(path)
    try:
        return FileRecord(**stored | {"parts": [PartRecord(**part) for part in stored["parts"]]})
    except (TypeError, KeyError) as error:
        raise DamagedPart(f"{path}: {error}") from error


def file_record_path(output: Path, file: int) -> Path:
    """Path of the record of a finished file."""
    return output / FILES / f"{file:06d}.json"


def sealed(content: dict[str, Any]) -> bytes:
    """A record as JSON with its checksum."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"content": content, "sha256": digest}, ensure_ascii=False).encode()


def unsealed(path: Path) -> dict[str, Any]:
    """Parse what `sealed` made. Raises DamagedPart if the checksum does not match."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        content = stored["content"]
        if stored["sha256"] != hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest():
            raise DamagedPart(f"{path} has another checksum than when it was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedPart(f"{path}: {error}") from error
    return content
