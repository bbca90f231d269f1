"""Training images of an image tokenizer, from any corpus: a buffer in memory, refilled after each pass.

A folder with picture files anywhere below it gives all of these, captions or not; anything else is read as shard_images
reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pretrain.system.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


class PictureBuffer:
    """Buffer of images uint8 [n, 3, size, size], cycling over corpora: `small`, and `large` of twice the size if asked
    for.

    What cannot be decoded is counted in `rejected` by reason, the first of each told to `warn`. UserError if there is no
    picture at all.
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
        self.rejected: Counter[str] = Counter()
        self.is_whole = False
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
                reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.rejected.items())
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
        for source in sources_of(self.paths):
            try:
                image = open_image(source)
                yield [preprocess(image, size) for size in sizes]
            except RejectedImage as bad:
                if bad.reason not in self.rejected:
                    self.warn(f"warning: left out as {bad.reason}: {bad}")
                self.rejected[bad.reason] += 1


def sources_of(paths: list[str]) -> Iterator[Path | str | bytes]:
    """Undecoded images of these inputs: a path, or the bytes of a file. Raises UserError as `open_corpus` does."""
    from tokenization import storage
    from tokenization.readers import Document, open_corpus
    from tokenization.readers.pairs import is_picture

    for path in paths:
        found = storage.entry_of(path)
        files = storage.files_below(path) if found and found.is_folder and not storage.is_remote(path) else []
        pictures = [
            entry.path
            for entry in files
            if is_picture(entry.name) and not entry.name.rpartition("/")[2].startswith(".")
        ]
        if pictures:
            yield from map(Path, pictures)
            continue
        corpus = open_corpus(path)
        for file in corpus.files:
            with corpus.open(file) as opened:
                for _, item in corpus.read(opened, 0):
                    for picture in item.pictures if isinstance(item, Document) else ():
                        data = picture.data
                        yield storage.read_bytes(data) if isinstance(data, str) else cast(Path | bytes, data)
