"""Corpora in the layouts that people have, all read as one stream of documents and rejects.

`open_corpus` finds out what a path holds from a listing and a look into the first files; each format is one module with
`scan` (how many records a file has, and a hash of them) and `read`. A file is looked into by whoever works on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from model.errors import UserError
from tokenization import storage
from tokenization.readers import arrow, json_records, parquet, plain, webdataset
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

__all__ = ["Corpus", "CorpusFile", "DamagedFile", "Document", "OpenFile", "Reject", "open_corpora", "open_corpus"]

FILES_TO_TELL = 8
"""How many files of a folder are looked into to tell what it holds."""
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
    """How the files of a suffix are read. `kind_of(file, name)` is a kind or None."""

    name: str
    kind_of: Callable[[BinaryIO, str], str | None]
    scan: Callable[[OpenFile], tuple[int, str]]
    read: Callable[[OpenFile, int], ItemStream]


FORMATS = {
    ".jsonl": Format("JSON lines", json_records.kind_of, json_records.scan, json_records.read),
    ".json": Format("JSON list", json_records.kind_of, json_records.scan, json_records.read),
    ".tar": Format("WebDataset tar", lambda _file, _name: CAPTION_PAIR, webdataset.scan, webdataset.read),
    ".parquet": Format("Parquet", parquet.kind_of, parquet.scan, parquet.read),
    ".arrow": Format("Arrow (datasets on disk)", arrow.kind_of, arrow.scan, arrow.read),
    ".txt": Format("text files", lambda _file, _name: TEXT, plain.scan, plain.read),
}


@dataclass(frozen=True)
class Corpus:
    """An input of the job: files of one format, all of one kind of documents."""

    source: str
    format: Format
    kind: str
    path: str
    files: list[CorpusFile]

    def describe(self) -> str:
        """One line: what was detected."""
        count, size = sum(len(file.paths) for file in self.files), sum(file.size for file in self.files)
        return (
            f"{self.path}: {self.format.name}, {WHAT[self.kind]}, {count:,} file{'s' if count != 1 else ''}, "
            f"{size / 1e6:,.1f} MB; source {self.source!r}"
        )

    @contextmanager
    def open(self, file: CorpusFile) -> Iterator[OpenFile]:
        """A file of this corpus on a local disk. OSError if it cannot be fetched."""
        with storage.local_copies(file.paths) as paths:
            root = file.paths[0].rpartition("/")[0] if storage.is_remote(self.path) else str(Path(file.paths[0]).parent)
            yield OpenFile(printable(file.name), paths, root, self.source, self.kind)

    def scan(self, file: OpenFile) -> tuple[int, str]:
        """The number of records (documents, rejects, blank lines), and a hash that changes with them. DamagedFile."""
        return self.format.scan(file)

    def read(self, file: OpenFile, start: int) -> ItemStream:
        """(number, Document or Reject) from record `start` on; the last one says so if the file is damaged there."""
        last = start - 1
        try:
            for number, item in self.format.read(file, start):
                last = number
                yield number, item
        except DamagedFile as damage:
            yield last + 1, damaged(file.name, self.source, damage)


def damaged(name: str, source: str, damage: DamagedFile) -> Reject:
    """The reject that stands for a file, or for the rest of one, that cannot be read."""
    return Reject(name, source, name, "damaged_file", str(damage))


def open_corpora(arguments: list[str]) -> list[Corpus]:
    """The corpora of `--input`, each PATH or NAME=PATH. UserError as in `open_corpus`, or if two share a name."""
    corpora: list[Corpus] = []
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator or "/" in name or Path(argument).exists():
            name, path = "", argument
        corpus = open_corpus(path, name)
        for other in corpora:
            if other.source == corpus.source:
                raise UserError(
                    f"{other.path} and {corpus.path} are both called {corpus.source!r}; "
                    f"name them: --input NAME={other.path} OTHER={corpus.path}"
                )
        corpora.append(corpus)
    return corpora


def open_corpus(path: Path | str, source: str = "") -> Corpus:
    """Detect the format of a file or folder, local or a URL, and list its files in the order of their names.

    `source` is the corpus' name in shards and manifests, by default that of the folder, or of the file without suffix.
    Raises UserError for a missing or unreadable path, a format that is not known, or an input without records.
    """
    path = str(path)
    try:
        found, entries = files_of(path)
        suffix = suffix_of(entries[0].name)
        kind = kind_of(path, FORMATS[suffix], entries)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
    source = source or printable(found.name if found.is_folder else Path(found.name).stem)
    files = [CorpusFile(entry.name, (entry.path,), entry.size) for entry in entries]
    return Corpus(source, FORMATS[suffix], kind, path, together(files) if suffix == ".txt" else files)


def together(files: list[CorpusFile]) -> list[CorpusFile]:
    """Neighbouring small files as one unit of work each."""
    units: list[CorpusFile] = []
    for file in files:
        last = units[-1] if units else None
        if last and len(last.paths) < SMALL_FILES and last.size < SMALL_BYTES:
            units[-1] = CorpusFile(last.name, last.paths + file.paths, last.size + file.size)
        else:
            units.append(file)
    return units


def kind_of(path: str, format: Format, entries: list[storage.Entry]) -> str:
    """What the first files that tell hold; a damaged one says nothing. UserError if they differ, or if none tells."""
    kinds, damage = {}, ""
    for entry in entries[:FILES_TO_TELL]:
        try:
            with storage.opened(entry.path) as file:
                kinds[printable(entry.name)] = format.kind_of(file, entry.name)
        except DamagedFile as error:
            damage = damage or f"{printable(entry.name)}: {error}"
    told = {name: kind for name, kind in kinds.items() if kind}
    for name, kind in told.items():
        first = next(iter(told))
        if kind != told[first]:
            raise UserError(f"{path}: {first} holds {told[first]} and {name} holds {kind}; name them one by one")
    if told:
        return next(iter(told.values()))
    if damage:
        raise UserError(f"{path}: {damage}")
    raise UserError(
        f"{path}: nothing in {next(iter(kinds))} tells what it holds; records have an image and a caption, a text, "
        "conversations, parts, or image_list and instruction_list (docs/data.md)"
    )


def files_of(path: str) -> tuple[storage.Entry, list[storage.Entry]]:
    """What `path` is, and the files of one format that it is or has directly inside."""
    known = ", ".join(FORMATS)
    found = storage.entry_of(path)
    if found is None:
        raise UserError(f"{path}: no such file or folder; pass --input a {known} file, or a folder of them")
    if not found.is_folder:
        if suffix_of(found.name) in FORMATS:
            return found, [found]
        raise UserError(f"{path}: unknown format; known are {known}, and folders of one of them")
    entries = storage.entries_of(path)
    by_suffix: dict[str, list[storage.Entry]] = {}
    for entry in entries:
        if not entry.is_folder and suffix_of(entry.name) in FORMATS:
            by_suffix.setdefault(suffix_of(entry.name), []).append(entry)
    if ".arrow" in by_suffix:
        by_suffix.pop(".json", None)  # what `datasets` writes beside its data
    if len(by_suffix) == 1:
        return found, next(iter(by_suffix.values()))
    if by_suffix:
        raise UserError(f"{path}: it holds {' and '.join(sorted(by_suffix))} files; name the ones to use")
    inner = ", ".join(printable(entry.name) for entry in entries if entry.is_folder)
    raise UserError(
        f"{path}: no {known} directly in it; captions of a picture folder stand in a captions.jsonl"
        + (f" (folders inside: {inner[:200]})" if inner else "")
    )


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in lower case."""
    return Path(name).suffix.lower()
