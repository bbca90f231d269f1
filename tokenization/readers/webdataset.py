"""WebDataset: tars in which the members KEY.png and KEY.txt (or KEY.caption, or KEY.json) are one sample.

KEY is the member's name up to the first dot of its last part, as the webdataset package has it. Where that would throw several
pictures together (v1.5_0000.png, v1.5_0001.png), names that are equal up to their last dot are a sample, if they have a
picture and a text. Samples lie together; members of one key that lie apart, such as in tars that are sorted by suffix, are
joined. Members are read in place and never unpacked, so the tars must not be compressed. KEY.jpg.txt is a text of KEY.jpg.
KEY.json holds `caption`, `captions` or `text`, and perhaps `id`; texts of several members are alternatives. Other members are
ignored, and so is what macOS adds (`._NAME`, `.DS_Store`, `__MACOSX`). Names may be any bytes: what is no UTF-8 in them is
spelt out in ids.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, cast

from tokenization.readers.document import (
    PICTURE_SUFFIXES,
    BadRecord,
    DamagedFile,
    Document,
    ItemStream,
    OpenFile,
    Picture,
    Reject,
    Text,
    captions_beside,
    captions_of,
    decode_utf8,
    given_id,
    inside,
    parse_object,
    printable,
)
from tokenization.readers.pairs import NOT_READ

TEXTS = ("json", "txt", "caption")
LARGEST_MEMBER = 1 << 30
"""Bytes of a member that are read into memory: the holes of a sparse one cost its writer nothing."""


@dataclass(frozen=True)
class Member:
    """Offset and size of a tar member; for a sparse one, (offset in it, bytes) of each stored piece, in order."""

    name: str
    key: str
    extension: str
    offset: int
    size: int
    regular: bool
    pieces: tuple[tuple[int, int], ...] | None = None

    @property
    def suffix(self) -> str:
        """Extension after the last dot, in lower case."""
        return self.extension.rpartition(".")[2]

    @property
    def stem(self) -> str:
        """The name up to its last dot."""
        return self.name.rpartition(".")[0] if self.extension else self.name


@dataclass(frozen=True)
class Sample:
    """Members with one key; or, with a `problem` (reason and detail), an image or text that is lost."""

    key: str
    members: list[Member] = field(default_factory=list)
    problem: tuple[str, str] | None = None


def scan(file: OpenFile) -> tuple[int, str]:
    """Count the samples of a tar and hash its headers; image data is not read. Raises DamagedFile."""
    digest, records = hashlib.sha256(), 0
    for sample in samples_of(file.paths[0]):
        records += 1
        for member in sample.members:
            digest.update(f"{member.name!r} {member.offset} {member.size}\n".encode())
    return records, digest.hexdigest()


def read(file: OpenFile, start: int) -> ItemStream:
    """Samples of a tar from number `start` on. Raises DamagedFile."""
    with open(file.paths[0], "rb") as tar:
        for number, sample in enumerate(samples_of(file.paths[0])):
            if number < start:
                continue
            where = f"{file.name}/{printable(sample.key)}"
            try:
                check_safe(sample.members)
                if sample.problem:
                    raise BadRecord(*sample.problem)
                yield number, document_of(sample, file, tar.fileno())
            except BadRecord as bad:
                yield number, Reject(where, file.source, where, bad.reason, bad.detail)


def document_of(sample: Sample, file: OpenFile, tar: int) -> Document:
    """Document of a sample; `tar` is the open file's descriptor. Raises BadRecord."""
    (picture,) = (member for member in sample.members if member.extension in PICTURE_SUFFIXES)
    named = {member.extension: member for member in sample.members}
    beside = [named[name] for text in TEXTS for name in (text, f"{picture.extension}.{text}") if name in named]
    records = [parse_object(bytes_of(member, tar)) for member in beside if member.suffix == "json"]
    record = records[0] if records else {}
    identity = given_id(record, f"{PurePosixPath(file.name).stem}/{printable(sample.key)}")
    texts = [caption for other in records[1:] for caption in captions_of(other)]
    texts += [decode_utf8(bytes_of(member, tar)) for member in beside if member.suffix != "json"]
    where = f"{file.name}/{printable(picture.name)}"
    parts = (Picture(bytes_of(picture, tar)), Text(captions_beside(record, texts)))
    return Document(identity, file.source, where, file.kind, parts)


def check_safe(members: list[Member]) -> None:
    """Raises BadRecord `unsafe_path` for a name that leaves its folder, and for members that are no regular file."""
    for member in members:
        inside(member.name)
        if not member.regular:
            raise BadRecord("unsafe_path", f"{member.name!r} is a link or a device, not a file of this tar")


def bytes_of(member: Member, tar: int) -> bytes:
    """A member's content, read in place. Raises BadRecord if it is too large."""
    if member.size > LARGEST_MEMBER:
        raise BadRecord(
            "too_large", f"{printable(member.name)} of {member.size:,} bytes; the limit is {LARGEST_MEMBER:,}"
        )
    if member.pieces is None:
        return os.pread(tar, member.size, member.offset)
    content, at = bytearray(member.size), member.offset
    for place, size in member.pieces:
        content[place : place + size] = os.pread(tar, size, at)
        at += size
    return bytes(content[: member.size])


def samples_of(path: Path) -> Iterator[Sample]:
    """Samples of a tar in order, from its headers alone; each image is in one, or has one of its own with a problem.

    DamagedFile, after what stands before the damage, if the tar is compressed, cut or damaged.
    """
    groups: list[tuple[str, list[Member]]] = []
    damage = None
    try:
        for key, members in groupby(members_of(path), key=lambda member: member.key):
            groups.append((key, list(members)))
    except DamagedFile as error:
        damage = error
    apart: dict[str, list[Member]] = {}
    for key, group in groups:
        if not is_complete(group):
            apart.setdefault(key, []).extend(group)
    for key, group in groups:
        if is_complete(group):
            yield from samples_in(key, group)
        elif key in apart:
            yield from samples_in(key, apart.pop(key))
    if damage:
        raise damage


def is_complete(members: list[Member]) -> bool:
    """Whether members include both an image and a text."""
    suffixes = {member.suffix for member in members}
    return bool(suffixes & PICTURE_SUFFIXES) and bool(suffixes.intersection(TEXTS))


def samples_in(key: str, members: list[Member]) -> Iterator[Sample]:
    """The samples among the members of one key."""
    stems: dict[str, list[Member]] = {}
    for member in members:
        stems.setdefault(member.stem, []).append(member)
    whole = [stem for stem, group in stems.items() if is_complete(group) and stem != key]
    own = [member for member in members if member.extension in PICTURE_SUFFIXES]
    if len(own) == 1 and not whole:
        yield Sample(key, members)
        return
    pictures = [member for member in members if member.suffix in PICTURE_SUFFIXES]
    if len(pictures) == 1 and not whole:  # KEY.image.jpg and KEY.txt
        yield Sample(key, [_undotted(member) if member in pictures else member for member in members])
        return
    if not pictures:
        names = ", ".join(printable(member.name) for member in members[:4])
        unread = next((member.suffix for member in members if member.suffix in NOT_READ), "")
        problem = ("missing_key", f"no picture among {names}")
        if unread:
            problem = ("not_a_picture", f"of {names}, .{unread} is not read: save it as JPEG, PNG or WebP")
        yield Sample(key, members, problem)
    for stem, group in stems.items():
        of_stem = [member for member in group if member.suffix in PICTURE_SUFFIXES]
        if len(of_stem) == 1 and is_complete(group):
            yield Sample(stem, [_undotted(member) for member in group])
            continue
        for member in of_stem:
            others = ", ".join(printable(other.name) for other in pictures if other is not member)[:200]
            if is_complete(members):
                problem = ("several_pictures", f"{printable(member.name)} shares its texts with {others or 'others'}")
            else:
                problem = ("missing_key", f"{printable(member.name)} has no text of its name (.txt, .caption or .json)")
            yield Sample(stem if len(of_stem) == 1 else member.name, [member], problem)


def _undotted(member: Member) -> Member:
    """Member of a sample whose key ends at the last dot."""
    return replace(member, key=member.stem, extension=member.suffix)


def members_of(path: Path) -> Iterator[Member]:
    """Members of a tar in order, without folders and macOS's files; hard links are resolved."""
    found: dict[str, Member] = {}
    size = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for info in iter(tar.next, None):
                vars(tar)["members"].clear()  # tarfile would keep every header in memory
                if info.isdir() or is_of_macos(info.name):
                    continue
                pieces: tuple[tuple[int, int], ...] | None = tuple(cast(Any, info).sparse) if info.issparse() else None
                stored = info.size if pieces is None else sum(length for _, length in pieces)
                if info.isreg() and info.offset_data + stored > size:
                    raise tarfile.ReadError(f"{info.name!r} is cut off")
                key, extension = split_name(info.name)
                member = Member(info.name, key, extension, info.offset_data, info.size, info.isreg(), pieces)
                if info.islnk() and (linked := found.get(info.linkname)):
                    member = replace(linked, name=info.name, key=key, extension=extension)
                found[info.name] = member
                yield member
            check_end(path, tar.offset)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # some bad headers get past tarfile
        raise DamagedFile(
            f"not a sound, uncompressed tar ({error}); fetch it again, or unpack it if it is compressed"
        ) from error


def is_of_macos(name: str) -> bool:
    """Whether a member is macOS metadata: its tar and zip add resource forks and folder settings."""
    path = PurePosixPath(name)
    return path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts


def check_end(path: Path, offset: int) -> None:
    """Raises ReadError unless the archive ends at `offset`: tarfile takes a damaged header for the end."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {offset:,}")


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension: `a/b.seg.png` is `a/b` and `seg.png`."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.parent / stem), extension.lower()
