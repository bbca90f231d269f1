"""Corpus readers: all supported layouts as one stream of documents and rejects.

`open_corpus` detects the format of a path from a listing and its first files; each format is one module with `scan` (number
of records of a file, and a hash of them) and `read`. Files are read by the worker that processes them.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pretrain.system.errors import UserError
from tokenization import storage
from tokenization.readers import arrow, json_records, pairs, parquet, plain, siblings, webdataset
from tokenization.readers.document import (
    CAPTION_PAIR,
    CONVERSATION,
    EDIT,
    INTERLEAVED,
    TEXT,
    CorpusFile,
    DamagedFile,
    Document,
    ItemStream,
    OpenFile,
    Reject,
    printable,
)
from tokenization.readers.siblings import suffix_of, unused_of

__all__ = ["Corpus", "CorpusFile", "DamagedFile", "Document", "OpenFile", "Reject", "open_corpora", "open_corpus"]

FILES_TO_TELL = 8
"""How many files of a folder are looked into to tell what it holds."""
BYTES_TO_NAME = 1 << 28
"""Bytes of JSON up to which all pictures that it names are looked up at the start, to tell which are not used."""
SMALL_FILES, SMALL_BYTES = 1000, 1 << 26
"""Text files that are worked on together: at most so many, and no more once they have this many bytes."""
WHAT = {
    CAPTION_PAIR: "pictures with captions",
    TEXT: "plain text",
    INTERLEAVED: "texts and pictures in order",
    CONVERSATION: "conversations",
    EDIT: "picture editing",
}


@dataclass(frozen=True)
class Format:
    """Reader of a file format. `kind_of(file, name)` is a kind or None, `unread(file, name, kind)` the unread keys of
    the first records."""

    name: str
    kind_of: Callable[[BinaryIO, str], str | None]
    scan: Callable[[OpenFile], tuple[int, str]]
    read: Callable[[OpenFile, int], ItemStream]
    unread: Callable[[BinaryIO, str, str], list[str]] = lambda _file, _name, _kind: []


FORMATS = {
    ".jsonl": Format("JSON lines", json_records.kind_of, json_records.scan, json_records.read, json_records.unread),
    ".json": Format("JSON list", json_records.kind_of, json_records.scan, json_records.read, json_records.unread),
    ".tar": Format("WebDataset tar", lambda _file, _name: CAPTION_PAIR, webdataset.scan, webdataset.read),
    ".parquet": Format("Parquet", parquet.kind_of, parquet.scan, parquet.read, parquet.unread),
    ".arrow": Format("Arrow (datasets on disk)", arrow.kind_of, arrow.scan, arrow.read, arrow.unread),
    ".txt": Format("text files", lambda _file, _name: TEXT, plain.scan, plain.read),
}
PAIRS = Format("pictures and texts of one name", lambda _file, _name: CAPTION_PAIR, pairs.scan, pairs.read)


@dataclass(frozen=True)
class Corpus:
    """An input of the job: files of one format, all with one kind of documents."""

    source: str
    format: Format
    kind: str
    path: str
    files: list[CorpusFile]
    unused: str = ""
    image_root: str = ""
    unread: str = ""
    names: str = ""

    def describe(self) -> str:
        """One line on what was detected."""
        count = sum(len(file.members or file.paths) for file in self.files)
        size = sum(file.size for file in self.files)
        return (
            f"{self.path}: {self.format.name}, {WHAT[self.kind]}, {count:,} file{'s' if count != 1 else ''}, "
            f"{size / 1e6:,.1f} MB; source {self.source!r}"
        )

    def warning(self) -> str | None:
        """One line on unused files, unread keys and odd names; None if there are none."""
        notes = [f"not used: {self.unused}"] if self.unused else []
        notes += [f"keys that are not read: {self.unread} (docs/data.md has those that are)"] if self.unread else []
        notes += [self.names] if self.names else []
        return f"{self.path}: {'; '.join(notes)}" if notes else None

    def names_pictures(self) -> bool:
        """Whether its records may name pictures in files of their own."""
        return self.format is not PAIRS and self.kind != TEXT and self.format is not FORMATS[".tar"]

    @contextmanager
    def open(self, file: CorpusFile) -> Iterator[OpenFile]:
        """A file of this corpus on a local disk, downloaded if needed. Raises OSError."""
        with storage.local_copies(file.paths) as paths:
            if self.format is PAIRS:  # they name no pictures
                root = self.path.rstrip("/")
            elif self.image_root:
                root = self.image_root
            else:
                root = (
                    file.paths[0].rpartition("/")[0]
                    if storage.is_remote(self.path)
                    else str(Path(file.paths[0]).parent)
                )
            yield OpenFile(printable(file.name), paths, root, self.source, self.kind, file.members)

    def scan(self, file: OpenFile) -> tuple[int, str]:
        """Number of records (documents, rejects, blank lines), and a hash that changes with them. Raises
        DamagedFile."""
        return self.format.scan(file)

    def read(self, file: OpenFile, start: int) -> ItemStream:
        """Yield (number, Document or Reject) from record `start` on; a damaged file ends with a Reject."""
        last = start - 1
        try:
            for number, item in self.format.read(file, start):
                last = number
                yield number, item
        except DamagedFile as damage:
            yield last + 1, damaged(file.name, self.source, damage)


def damaged(name: str, source: str, damage: DamagedFile) -> Reject:
    """The reject for a file, or for the rest of one, that cannot be read."""
    return Reject(name, source, name, "damaged_file", str(damage))


def open_corpora(arguments: list[str], image_root: str = "") -> list[Corpus]:
    """Corpora of `--input`, each PATH or NAME=PATH. Raises UserError as `open_corpus` does, or if two share a name.

    image_root: the folder or URL that pictures named in records are relative to, in place of the file's own.
    """
    corpora: list[Corpus] = []
    places: dict[str, str] = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator or "/" in name or Path(argument).exists():
            name, path = "", argument
        place = path if storage.is_remote(path) else os.path.realpath(path)
        if place in places:
            raise UserError(f"{path}: is given twice, and its documents would be learned twice as often: give it once")
        places[place] = path
        corpus = open_corpus(path, name, image_root)
        for other in corpora:
            if other.source == corpus.source:
                raise UserError(
                    f"{other.path} and {corpus.path} are both called {corpus.source!r}; "
                    f"name them: --input NAME={other.path} OTHER={corpus.path}"
                )
        corpora.append(corpus)
    if image_root and not any(corpus.names_pictures() for corpus in corpora):
        raise UserError(f"--image-root {image_root}: no input names pictures, they are in its files: leave it out")
    return corpora


def open_corpus(path: Path | str, source: str = "", image_root: str = "") -> Corpus:
    """Detect the format of a file or folder, local or a URL, and list its files sorted by name.

    `source` is the corpus' name in shards and manifests, by default that of the folder, or of the file without suffix.
    Raises UserError for a missing or unreadable path, a format that is not known, or an input without records.
    """
    path = str(path)
    try:
        found, entries = files_of(path)
        if image_root and not ((root := storage.entry_of(image_root)) and root.is_folder):
            raise UserError(f"--image-root {image_root}: no such folder")
        below = tree_of(path) if found.is_folder else []
        written = siblings.of_img2dataset([entry.name for entry in below])
        below = [entry for entry in below if entry.name not in written]
        paired = bool(below) and (not entries or suffix_of(entries[0].name) in pairs.TEXT_SUFFIXES) and is_paired(below)
        if paired:
            format, kind, files = PAIRS, CAPTION_PAIR, pairs.units_of(below)
        elif not entries:
            raise UserError(nothing_known(path, below))
        else:
            suffix = suffix_of(entries[0].name)
            format, kind = FORMATS[suffix], kind_of(path, FORMATS[suffix], entries)
            files = [CorpusFile(entry.name, (entry.path,), entry.size) for entry in entries]
            files = together(files) if suffix == ".txt" else files
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
    source = source or printable(found.name if found.is_folder else Path(found.name).stem)
    used = {name for file in files for name, _ in file.members} or {entry.name for entry in entries}
    if format.read is json_records.read and not storage.is_remote(path) and not image_root:
        if sum(file.size for file in files) <= BYTES_TO_NAME:
            used |= {
                posixpath.normpath(name) for file in files for name in json_records.picture_names(Path(file.paths[0]))
            }
        else:
            below = [entry for entry in below if not pairs.is_picture(entry.name)]
    used |= siblings.OF_DATASETS if format.read is arrow.read else frozenset()
    unused = unused_of([entry for entry in below if entry.name not in used])
    unread = "" if format is PAIRS else ", ".join(printable(key) for key in unread_of(format, kind, entries)[:20])
    names = siblings.note([entry.name for entry in entries]) if found.is_folder and format is not PAIRS else ""
    return Corpus(source, format, kind, path, files, unused, image_root, unread, names)


def unread_of(format: Format, kind: str, entries: list[storage.Entry]) -> list[str]:
    """Unread keys of the first records of a corpus's first file; none for a damaged file."""
    try:
        with storage.opened(entries[0].path) as file:
            return format.unread(file, entries[0].name, kind)
    except DamagedFile:
        return []


def tree_of(path: str) -> list[storage.Entry]:
    """All files below a folder, by relative name, without hidden files and macOS's own."""
    entries = storage.files_below(path)
    return [entry for entry in entries if not any(part.startswith((".", "__MACOSX")) for part in entry.name.split("/"))]


def is_paired(entries: list[storage.Entry]) -> bool:
    """Whether images have texts of the same name; a .json must be an object, since a list may be a corpus."""
    if not pairs.has_pairs(entries):
        return False
    first = next((entry for entry in entries if suffix_of(entry.name) == ".json"), None)
    if first is None or any(suffix_of(entry.name) in (".txt", ".caption") for entry in entries):
        return True
    with storage.opened(first.path) as file:
        return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"["


def nothing_known(path: str, below: list[storage.Entry]) -> str:
    """Why a folder is not a corpus."""
    pictures = sum(pairs.is_picture(entry.name) for entry in below)
    folders = ", ".join(sorted({printable(entry.name.partition("/")[0]) for entry in below if "/" in entry.name}))
    others = unused_of([entry for entry in below if not pairs.is_picture(entry.name)])
    beside = f"; {pictures:,} pictures lie below it, and none has a text of its name (KEY.txt, KEY.caption, KEY.json)"
    return (
        f"{path}: no {', '.join(FORMATS)} directly in it; captions of a picture folder stand in a captions.jsonl, or beside "
        f"each picture{beside if pictures else ''}"
        + (f"; below it lie {others}, which are not read" if others else "")
        + (f" (folders inside: {folders[:200]})" if folders else "")
    )


def together(files: list[CorpusFile]) -> list[CorpusFile]:
    """Group neighbouring small files into units of work."""
    units: list[CorpusFile] = []
    for file in files:
        last = units[-1] if units else None
        if last and len(last.paths) < SMALL_FILES and last.size < SMALL_BYTES:
            units[-1] = CorpusFile(last.name, last.paths + file.paths, last.size + file.size)
        else:
            units.append(file)
    return units


def kind_of(path: str, format: Format, entries: list[storage.Entry]) -> str:
    """Kind of documents from the first files that show one; damaged files are skipped. Raises UserError if they differ,
    or if none shows one."""
    kinds, damage = {}, ""
    for entry in entries[:FILES_TO_TELL]:
        try:
            with storage.opened(entry.path) as file:
                kinds[printable(entry.name)] = format.kind_of(file, entry.name)
        except DamagedFile as error:
            damage = damage or f"{printable(entry.name)}: {error}"
    known = {name: kind for name, kind in kinds.items() if kind}
    for name, kind in known.items():
        first = next(iter(known))
        if kind != known[first]:
            raise UserError(f"{path}: {first} holds {known[first]} and {name} holds {kind}; name them one by one")
    if known:
        return next(iter(known.values()))
    if damage:
        raise UserError(f"{path}: {damage}")
    raise UserError(
        f"{path}: nothing in {next(iter(kinds))} tells what it holds; records have an image and a caption, a text, "
        "conversations, parts, or image_list and instruction_list (docs/data.md)"
    )


def files_of(path: str) -> tuple[storage.Entry, list[storage.Entry]]:
    """Entry of `path`, and the files of one format that it is or directly contains, if any.

    Where texts and JSON lie side by side, they may be those of pictures.
    """
    known = ", ".join(FORMATS)
    found = storage.entry_of(path)
    if found is None:
        raise UserError(f"{path}: no such file or folder; give a {known} file, or a folder of them")
    if not found.is_folder:
        if not storage.is_remote(path) and not Path(path).is_file():
            raise UserError(
                f"{path}: is a pipe, socket or device, and inputs are read more than once: write it to a file first"
            )
        if suffix_of(found.name) in FORMATS:
            return found, [found]
        raise UserError(f"{path}: unknown format; known are {known}, and folders of one of them")
    entries = storage.entries_of(path)
    by_suffix: dict[str, list[storage.Entry]] = {}
    written = siblings.of_img2dataset([entry.name for entry in entries])
    for entry in entries:
        if not entry.is_folder and suffix_of(entry.name) in FORMATS and entry.name not in written:
            by_suffix.setdefault(suffix_of(entry.name), []).append(entry)
    siblings.check_splits(path, entries)
    if ".arrow" in by_suffix:
        by_suffix.pop(".json", None)  # what `datasets` writes beside its data
        by_suffix[".arrow"] = siblings.of_dataset(path, entries, by_suffix[".arrow"])
    if len(by_suffix) == 1:
        return found, next(iter(by_suffix.values()))
    if by_suffix.keys() == {".json", ".txt"} and pairs.has_pairs([entry for entry in entries if not entry.is_folder]):
        return found, by_suffix[".json"]
    if by_suffix:
        raise UserError(f"{path}: it holds {' and '.join(sorted(by_suffix))} files; name the ones to use")
    return found, []
