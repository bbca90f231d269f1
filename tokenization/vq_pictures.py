"""Training images of an image tokenizer, from any corpus: a buffer in memory, refilled after each pass.

A folder with picture files anywhere below it gives all of these, captions or not; anything else is read as shard_images
reads it.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pretrain.system.errors import UserError
from tokenization.frames import FURTHER, in_words, merged
from tokenization.readers.document import Reject
from tokenization.reject_counts import RejectCounts, example

if TYPE_CHECKING:
    from PIL import Image


WITH_PICTURES = (".tar", ".parquet", ".arrow")
"""Suffixes of files that may hold pictures themselves."""


class PictureBuffer:
    """Buffer of images uint8 [n, 3, size, size], cycling over corpora: `small`, and `large` of twice the size if asked
    for.

    What cannot be read or decoded is counted in `rejected` by reason, in the first pass alone, and the first of each told to
    `warn`; `first_frames` are its pictures of which further frames are left out. UserError if there is no picture at all.
    """

    def __init__(
        self, paths: list[str], size: int, capacity: int, with_large: bool = False, warn: Callable[[str], None] = print
    ):
        self.paths, self.size, self.capacity, self.with_large, self.warn = (
            paths,
            size,
            max(1, capacity),
            with_large,
            warn,
        )
        self.rejected = RejectCounts()
        self.first_frames: list[dict[str, Any]] = []
        self.is_whole = self.is_counted = False
        self._stream = self._decoded()
        self.refill()

    def refill(self) -> None:
        """Load the next images, as many as fit; no change if all of them fit."""
        import numpy
        import torch

        if self.is_whole:
            return
        taken: list[list[numpy.ndarray]] = []
        while len(taken) < self.capacity and (images := next(self._stream, None)) is not None:
            taken.append([numpy.asarray(image) for image in images])
        if len(taken) < self.capacity or not taken:
            if not taken and not hasattr(self, "small"):
                reasons = self.rejected.in_words()
                raise UserError(
                    f"{', '.join(self.paths)}: no picture that can be used{f' ({reasons})' if reasons else ''}"
                )
            self.is_whole = not hasattr(self, "small")
            self._stream = self._decoded()  # the next pass begins at the front
            if not taken:
                return self.refill()
        sides = [numpy.stack(side) for side in zip(*taken)]
        tensors = [torch.from_numpy(side).permute(0, 3, 1, 2).contiguous() for side in sides]
        self.small, self.large = tensors[0], tensors[-1]
        return None

    def _decoded(self) -> Iterator[list[Image.Image]]:
        from tokenization.preprocess import RejectedImage, open_image, preprocess

        sizes = (self.size, 2 * self.size) if self.with_large else (self.size,)
        for item in sources_of(self.paths, self.warn if not self.is_counted else lambda _line: None):
            if isinstance(item, Reject):
                self._leave_out(item)
                continue
            name, source = item
            try:
                image = open_image(source)
                images = [preprocess(image, size) for size in sizes]
            except RejectedImage as bad:
                self._leave_out(Reject(name, "", name, bad.reason, bad.detail))
                continue
            if FURTHER in image.info and not self.is_counted:
                self.first_frames.append({"pictures": 1, "example": name})
            yield images
        self.is_counted = True

    def _leave_out(self, reject: Reject) -> None:
        if not self.is_counted and self.rejected.add(reject):
            self.warn(f"warning: {example(reject)}")


def say_left_out(buffers: dict[str, PictureBuffer], told: Sequence[str] = ()) -> list[str]:
    """Print what of the pictures read so far is left out, by option: rejects by reason, and further frames.

    Lines in `told`, which an earlier call gave, are not repeated.
    """
    lines = []
    for option, buffer in buffers.items():
        rejects = buffer.rejected.left_out() if buffer.rejected.counts else ""
        lines += [f"--{option}: {line}" for line in (rejects, in_words(merged(buffer.first_frames))) if line]
    for line in lines:
        if line not in told:
            print(line, flush=True)
    return lines


def counts_left_out(buffers: dict[str, PictureBuffer]) -> dict[str, dict[str, int]]:
    """Numbers of `say_left_out`, for the record: rejects by reason, and pictures with `further_frames`."""
    counts = {}
    for option, buffer in buffers.items():
        frames = {FURTHER: len(buffer.first_frames)} if buffer.first_frames else {}
        counts[option] = dict(buffer.rejected.counts) | frames
    return counts


def lies_in(path: str, folder: str) -> bool:
    """Whether the pictures of an input are among those of `folder`, another one: the same, or a folder of pictures, or a file
    that names some, below it. Tars and tables there are not read with the pictures of a folder."""
    from tokenization import storage
    from tokenization.readers.pairs import is_picture, suffix_of

    inner, outer = (place if storage.is_remote(place) else os.path.realpath(place) for place in (path, folder))
    if inner == outer:
        return True
    if not inner.startswith(outer.rstrip("/") + "/") or (found := storage.entry_of(path)) is None:
        return False
    if found.is_folder:
        return any(is_picture(entry.name) for entry in storage.files_below(path))
    return f".{suffix_of(path)}" not in WITH_PICTURES


def sources_of(paths: list[str], warn: Callable[[str], None]) -> Iterator[Reject | tuple[str, Path | bytes]]:
    """Undecoded images of these inputs, each with the name of its file: a path, or the bytes of a file; and what the reader
    rejects, and pictures in other formats. `warn` gets a line on files that are not used. Raises UserError as `open_corpus`
    does."""
    from tokenization import storage
    from tokenization.readers import open_corpus
    from tokenization.readers.pairs import NOT_READ, is_picture, suffix_of

    for path in paths:
        found = storage.entry_of(path)
        files = storage.files_below(path) if found and found.is_folder and not storage.is_remote(path) else []
        pictures = [
            (entry.name, Path(entry.path))
            for entry in files
            if is_picture(entry.name) and not entry.name.rpartition("/")[2].startswith(".")
        ]
        if pictures:
            if others := [entry.name for entry in files if f".{suffix_of(entry.name)}" in WITH_PICTURES]:
                warn(
                    f"warning: {path}: not used beside its picture files: {len(others):,} such as {others[0]}: name them too"
                )
            yield from pictures
            stems = {posixpath.splitext(name)[0] for name, _ in pictures}  # the same picture in another format
            for entry in files:
                stem, is_hidden = posixpath.splitext(entry.name)[0], entry.name.rpartition("/")[2].startswith(".")
                if suffix_of(entry.name) in NOT_READ and stem not in stems and not is_hidden:
                    detail = f".{suffix_of(entry.name)} is not read: save it as JPEG, PNG or WebP"
                    yield Reject(entry.name, "", entry.name, "not_a_picture", detail)
            continue
        corpus = open_corpus(path)
        if beside := replace(corpus, unread="").warning():
            warn(f"warning: {beside}")
        for file in corpus.files:
            with corpus.open(file) as opened:
                for _, item in corpus.read(opened, 0):
                    if isinstance(item, Reject):
                        yield item
                        continue
                    for picture in item.pictures:
                        data = picture.data
                        if isinstance(given := data, str):
                            try:
                                data = storage.read_bytes(given)
                            except (FileNotFoundError, PermissionError, IsADirectoryError):
                                detail = f"{given}: cannot be opened"
                                yield Reject(item.id, item.source, item.file, "missing_file", detail)
                                continue
                        yield item.file, cast(Path | bytes, data)
