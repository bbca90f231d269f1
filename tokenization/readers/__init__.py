"""Corpora in the layouts that people have, all read as one stream of documents and rejects.

`open_corpus` finds out what a path holds; each format is one module with `scan` (what is in a file) and `read`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.errors import UserError
from tokenization.readers import folder, parquet, webdataset
from tokenization.readers.document import CAPTION_PAIR, CorpusFile, Document, ItemStream, Reject

__all__ = ["Corpus", "CorpusFile", "Document", "Reject", "open_corpora", "open_corpus"]

SUFFIXES = {".jsonl": "JSON lines", ".tar": "WebDataset tar", ".parquet": "Parquet"}


@dataclass(frozen=True)
class Corpus:
    """An input of the job. `read(file, start)` yields (number, Document or Reject) from record `start` of a file on."""

    source: str
    format: str
    kind: str
    path: Path
    files: list[CorpusFile]
    read: Callable[[CorpusFile, int], ItemStream]

    @property
    def records(self) -> int:
        """Records of all files: documents, rejects and, in JSON lines, blank lines."""
        return sum(file.records for file in self.files)

    def describe(self) -> str:
        """One line: what was detected."""
        what = "pictures with captions" if self.kind == CAPTION_PAIR else "plain text"
        count = len(self.files)
        return (
            f"{self.path}: {self.format}, {what}, {count} file{'s' if count != 1 else ''}, {self.records:,} records; "
            f"source {self.source!r}"
        )


def open_corpora(arguments: list[str]) -> list[Corpus]:
    """The corpora of `--input`, each PATH or NAME=PATH. UserError as in `open_corpus`, or if two share a name."""
    corpora: list[Corpus] = []
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator or Path(argument).exists():
            name, path = "", argument
        corpus = open_corpus(Path(path), name)
        for other in corpora:
            if other.source == corpus.source:
                raise UserError(
                    f"{other.path} and {corpus.path} are both called {corpus.source!r}; "
                    f"name them: --input NAME={other.path} OTHER={corpus.path}"
                )
        corpora.append(corpus)
    return corpora


def open_corpus(path: Path, source: str = "") -> Corpus:
    """Detect the format of a file or folder and list its files, in the order of their names.

    `source` is the corpus' name in shards and manifests, by default that of the folder, or of the file without suffix.
    Raises UserError for a missing or unreadable path, a format that is not known, or an input without records.
    """
    try:
        paths = files_of(path)
        suffix = paths[0].suffix.lower()
        if suffix == ".tar":
            kind, scan, read = CAPTION_PAIR, webdataset.scan, webdataset.read
        else:
            module = folder if suffix == ".jsonl" else parquet
            kinds = {file: module.kind_of(file) for file in paths}
            kind = kinds[paths[0]]
            for file, other in kinds.items():
                if other != kind:
                    raise UserError(
                        f"{path}: {paths[0].name} holds {kind} and {file.name} holds {other}; name them one by one"
                    )
            scan, read = module.scan, partial(module.read, kind=kind)
        files = [scan(file) for file in paths]
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
    source = source or (path.resolve().name if path.is_dir() else path.stem)
    corpus = Corpus(
        source=source,
        format=SUFFIXES[suffix],
        kind=kind,
        path=path,
        files=files,
        read=lambda file, start: read(file, source=source, start=start),
    )
    if not corpus.records:
        raise UserError(f"{path}: there is nothing in it")
    return corpus


def files_of(path: Path) -> list[Path]:
    """The files of one format that `path` is, or has directly inside."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; pass --input a .jsonl, .tar or .parquet, or a folder of them")
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            return [path]
        raise UserError(f"{path}: unknown format; known are {', '.join(SUFFIXES)}, and folders of one of them")
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    by_suffix: dict[str, list[Path]] = {}
    for entry in entries:
        if entry.is_file() and entry.suffix.lower() in SUFFIXES:
            by_suffix.setdefault(entry.suffix.lower(), []).append(entry)
    if len(by_suffix) == 1:
        return next(iter(by_suffix.values()))
    if by_suffix:
        raise UserError(f"{path}: it holds {' and '.join(sorted(by_suffix))} files; name the ones to use")
    inner = ", ".join(entry.name for entry in entries if entry.is_dir())
    raise UserError(
        f"{path}: no {', '.join(SUFFIXES)} directly in it; captions of a picture folder stand in a captions.jsonl"
        + (f" (folders inside: {inner[:200]})" if inner else "")
    )
