"""WebDataset: tars in which the consecutive members KEY.png and KEY.txt (or KEY.json) are one sample.

KEY is the member's name up to the first dot of its last part. Members are read in place and never unpacked, so the tars
must not be compressed. KEY.json holds `caption`, `captions` or `text`, and perhaps `id`; other members are ignored.
Names may be any bytes: what is no UTF-8 in them is spelt out in ids.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath

from tokenization.readers.document import (
    BadRecord,
    DamagedFile,
    Document,
    ItemStream,
    OpenFile,
    Picture,
    Reject,
    Text,
    captions_of,
    decode_utf8,
    given_id,
    inside,
    parse_object,
    printable,
)

PICTURES = {"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "avif"}


@dataclass(frozen=True)
class Member:
    """Where a member's bytes are in its tar."""

    name: str
    key: str
    extension: str
    offset: int
    size: int
    regular: bool


@dataclass(frozen=True)
class Sample:
    """The consecutive members of one key."""

    key: str
    members: list[Member] = field(default_factory=list)


def scan(file: OpenFile) -> tuple[int, str]:
    """Count the samples of a tar and hash its headers; the pictures are not read. DamagedFile."""
    digest, records = hashlib.sha256(), 0
    for sample in samples_of(file.paths[0]):
        records += 1
        for member in sample.members:
            digest.update(f"{member.name!r} {member.offset} {member.size}\n".encode())
    return records, digest.hexdigest()


def read(file: OpenFile, start: int) -> ItemStream:
    """The samples of a tar from number `start` on. DamagedFile."""
    with open(file.paths[0], "rb") as tar:
        for number, sample in enumerate(samples_of(file.paths[0])):
            if number < start:
                continue
            where = f"{file.name}/{printable(sample.key)}"
            try:
                yield number, document_of(sample, file, tar.fileno())
            except BadRecord as bad:
                yield number, Reject(where, file.source, where, bad.reason, bad.detail)


def document_of(sample: Sample, file: OpenFile, tar: int) -> Document:
    """The document of a sample; `tar` is the open file's descriptor. Raises BadRecord."""
    for member in sample.members:
        inside(member.name)
        if not member.regular:
            raise BadRecord("unsafe_path", f"{member.name!r} is a link or a device, not a file")
    pictures = [member for member in sample.members if member.extension in PICTURES]
    if len(pictures) != 1:
        names = ", ".join(printable(member.name) for member in pictures or sample.members)
        reason = "several_pictures" if pictures else "missing_key"
        raise BadRecord(reason, f"{'more than one picture' if pictures else 'no picture'} among {names}")
    named = {member.extension: member for member in sample.members}
    if "json" in named:
        record = parse_object(bytes_of(named["json"], tar))
    else:
        record = {}
    if "txt" in named and not any(key in record for key in ("caption", "captions", "text")):
        record["caption"] = decode_utf8(bytes_of(named["txt"], tar))
    picture = pictures[0]
    identity = given_id(record, f"{PurePosixPath(file.name).stem}/{printable(sample.key)}")
    where = f"{file.name}/{printable(picture.name)}"
    parts = (Picture(bytes_of(picture, tar)), Text(captions_of(record)))
    return Document(identity, file.source, where, file.kind, parts)


def bytes_of(member: Member, tar: int) -> bytes:
    """The member's content, read in place."""
    return os.pread(tar, member.size, member.offset)


def samples_of(path: Path) -> Iterator[Sample]:
    """The samples of a tar in order, from its headers alone. DamagedFile if the tar is compressed, cut or damaged."""
    for key, members in groupby(members_of(path), key=lambda member: member.key):
        yield Sample(key, list(members))


def members_of(path: Path) -> Iterator[Member]:
    """The members of a tar in order, folders left out."""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in iter(tar.next, None):
                tar.members.clear()  # tarfile would keep every header in memory
                if info.isdir():
                    continue
                if info.isreg() and info.offset_data + info.size > os.path.getsize(path):
                    raise tarfile.ReadError(f"{info.name!r} is cut off")
                key, extension = split_name(info.name)
                yield Member(info.name, key, extension, info.offset_data, info.size, info.isreg())
            check_end(path, tar.offset)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # some bad headers get past tarfile
        raise DamagedFile(
            f"not a sound, uncompressed tar ({error}); fetch it again, or unpack it if it is compressed"
        ) from error


def check_end(path: Path, offset: int) -> None:
    """Raise ReadError unless the archive ends at `offset`: tarfile takes a damaged header for the end."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {offset:,}")


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension: `a/b.seg.png` is `a/b` and `seg.png`."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.parent / stem), extension.lower()
