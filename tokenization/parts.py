"""Parts: the unit of work that a kill can lose.

A part is published by renaming its finished folder to `parts/00012`, so it is there whole or not at all. Beside its MDS
shards lies part.json, which says what is in them and why other documents are not; its own checksum guards it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenization.files import publish_folder, sha256_of, temporary_name
from tokenization.readers.document import Reject
from tokenization.sample import COLUMNS, KINDS, CodedDocument, to_mds

PARTS = "parts"
SHARD_BYTES = 1 << 26


class DamagedPart(Exception):
    """A published part that is not as it was written."""


@dataclass(frozen=True)
class PartRecord:
    """What part.json holds. The lists have one entry a document, in the order of the shards.

    `kinds` are positions in KINDS, `image_tokens` counts the codes of all pictures of a document, and `shards` are the
    entries of the part's MDS index.
    """

    index: int
    source: str
    ids: list[str]
    kinds: list[int]
    text_lengths: list[list[int]]
    image_tokens: list[int]
    pictures: list[int]
    rejects: list[dict[str, str]]
    shards: list[dict[str, Any]] = field(default_factory=list)

    def reasons(self) -> Counter[str]:
        """How many rejects each reason has."""
        return Counter(reject["reason"] for reject in self.rejects)


def part_folder(output: Path, index: int) -> Path:
    """Where a part is published."""
    return output / PARTS / f"{index:05d}"


def mds_writer() -> type:
    """streaming's MDSWriter; the first call imports it, which takes seconds."""
    from model.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from streaming import MDSWriter

    return MDSWriter


def write_part(
    output: Path, index: int, source: str, documents: list[CodedDocument], rejects: list[Reject]
) -> PartRecord:
    """Write the shards and part.json of a part, and publish it."""
    folder = part_folder(output, index)
    temporary = temporary_name(folder)
    with mds_writer()(columns=COLUMNS, out=str(temporary), hashes=["sha256"], size_limit=SHARD_BYTES) as writer:
        for document in documents:
            writer.write(to_mds(document))
    shards = json.loads((temporary / "index.json").read_text(encoding="utf-8"))["shards"]
    record = PartRecord(
        index=index,
        source=source,
        ids=[document.id for document in documents],
        kinds=[KINDS.index(document.kind) for document in documents],
        text_lengths=[[len(ids) for ids in document.text_ids] for document in documents],
        image_tokens=[sum(codes.size for codes in document.codes) for document in documents],
        pictures=[len(document.codes) for document in documents],
        rejects=[asdict(reject) for reject in rejects],
        shards=shards,
    )
    (temporary / "part.json").write_text(json.dumps(sealed(asdict(record)), ensure_ascii=False), encoding="utf-8")
    publish_folder(temporary, folder)
    return record


def read_part(output: Path, index: int) -> PartRecord:
    """The record of a published part, its shards checked against their hashes. DamagedPart says what does not fit."""
    folder = part_folder(output, index)
    path = folder / "part.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored != sealed(stored["part"]):
            raise DamagedPart(f"{path} has another checksum than when it was written")
        record = PartRecord(**stored["part"])
        for shard in record.shards:
            info = shard["raw_data"]
            if sha256_of(folder / info["basename"]) != info["hashes"]["sha256"]:
                raise DamagedPart(f"{folder / info['basename']} has another checksum than when it was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedPart(f"{path}: {error}") from error
    return record


def sealed(part: dict[str, Any]) -> dict[str, Any]:
    """The part with its checksum."""
    canonical = json.dumps(part, sort_keys=True).encode()
    return {"part": part, "sha256": hashlib.sha256(canonical).hexdigest()}


def published_parts(output: Path, count: int, warn: Callable[[str], None]) -> dict[int, PartRecord]:
    """The sound ones of the first `count` parts, by index. What is damaged is named to `warn` and removed.

    What a killed run was still writing is removed too.
    """
    folder = output / PARTS
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover)
    records = {}
    for index in range(count):
        if part_folder(output, index).exists():
            try:
                records[index] = read_part(output, index)
            except DamagedPart as damage:
                warn(f"{damage}; this part is made again")
                shutil.rmtree(part_folder(output, index))
    return records
