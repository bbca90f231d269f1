"""Quality filters: usable inputs that are rejected: images too small, too elongated or duplicate, texts too short or
too long.

Filters change the output, so they are part of the job's record. All but the time limit are deterministic. Duplicates are
found within one input file here, since files are processed independently; across files they are found at the end
(`duplicates.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tokenization.preprocess import MAX_PIXELS, RejectedImage
from tokenization.readers.document import BadRecord

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

DUPLICATE = "duplicate_picture"
HASH_SIDE = 8
COLOUR_STEPS = 6
"""How far the mean colours of two pictures that count as one may lie apart, of 255: hashes see brightness alone."""


@dataclass(frozen=True)
class Filters:
    """Limits; 0 disables. `duplicate_bits`: how many of 64 bits of two images' hashes may differ; -1 keeps all."""

    min_side: int = 0  # pixels of the shorter side
    max_aspect: float = 0.0  # longer side by shorter side
    min_text: int = 0  # characters of a caption, or of a text as a whole
    max_text: int = 0
    max_pixels: int = MAX_PIXELS  # of a picture, known from its header
    duplicate_bits: int = -1

    def check_size(self, width: int, height: int) -> None:
        """Raises RejectedImage `small_picture` or `extreme_aspect`."""
        short, long = sorted((width, height))
        if short < self.min_side:
            raise RejectedImage("small_picture", f"{width} x {height} pixels, --min-side is {self.min_side}")
        if self.max_aspect and long > self.max_aspect * short:
            raise RejectedImage("extreme_aspect", f"{width} x {height} pixels, --max-aspect is {self.max_aspect:g}")

    def check_texts(self, texts: tuple[str, ...]) -> None:
        """Raises BadRecord `short_text` or `long_text` for any text of a document."""
        for text in texts:
            if len(text) < self.min_text:
                raise BadRecord("short_text", f"a text of {len(text):,} characters, --min-text is {self.min_text:,}")
            if self.max_text and len(text) > self.max_text:
                raise BadRecord("long_text", f"a text of {len(text):,} characters, --max-text is {self.max_text:,}")


class SeenPictures:
    """Hashes of the images of a file so far."""

    def __init__(self, bits: int):
        self.bits = bits
        self.hashes = np.zeros((1024, 4), dtype=np.uint64)
        self.count = 0

    def find(self, hashes: np.ndarray) -> int | None:
        """First of `hashes` uint64 [n, 4] of an image seen before; None if all are new."""
        known = self.hashes[: self.count]
        for number, new in enumerate(hashes):
            near = np.bitwise_count(known[:, 0] ^ new[0]) <= self.bits
            if near.any():
                apart = np.abs(known[near, 1:].astype(np.int64) - new[1:].astype(np.int64)).max(axis=1)
                if (apart <= COLOUR_STEPS).any():
                    return number
        return None

    def add(self, hashes: np.ndarray) -> None:
        """Add hashes as seen."""
        while self.count + len(hashes) > len(self.hashes):
            self.hashes = np.concatenate([self.hashes, np.zeros_like(self.hashes)])
        self.hashes[self.count : self.count + len(hashes)] = hashes
        self.count += len(hashes)


def picture_hash(image: Image.Image) -> np.ndarray:
    """Perceptual hash uint64 [4] of an RGB image: a difference hash, a bit for each step of brightness to the right,
    and its mean colour.

    Scaling, recompression and small changes of brightness leave nearly all bits as they are.
    """
    from PIL import Image

    small = image.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    colour = np.asarray(small, dtype=np.float64).mean(axis=(0, 1)).astype(np.uint64)
    return np.concatenate([bits.view(np.uint64), colour])


def within(seconds: float, work: Callable[[], T]) -> T:
    """Result of `work` with a timeout. Raises RejectedImage `too_slow`; the work goes on in an abandoned thread.

    A decoder cannot be interrupted; pictures that take for ever are rare enough to leave one behind.
    """
    if not seconds:
        return work()
    outcome: list[T | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="decode", daemon=True)
    thread.start()
    thread.join(min(seconds, threading.TIMEOUT_MAX))
    if not outcome:
        raise RejectedImage("too_slow", f"decoding took more than {seconds:g} s")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
