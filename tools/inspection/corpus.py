"""Preview of a corpus: documents, images and rejects, counted and shown."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from model.shapes import Framing

if TYPE_CHECKING:
    from tokenization.readers import Corpus, Document, Reject
    from tokenization.readers.document import OpenFile

SHEET_PICTURES = 60
LITTLE = 0.1
"""An input of which a smaller share can be used was not understood."""
GOLDEN = 0.6180339887498949
"""Multiples of it modulo 1 are spread evenly, however many there are."""


class CorpusFindings:
    """Findings on one input: its documents with decoded images, and what would be rejected."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self.documents: list[tuple[Document, list[Any]]] = []
        self.rejects: list[Reject] = []
        self.sizes: list[tuple[int, int]] = []
        self.modes: Counter[str] = Counter()
        self.first_frames: list[dict[str, Any]] = []  # pictures of which further frames are left out
        self.sheet: list[tuple[Any, str]] = []
        self.upright: list[tuple[int, int]] = []  # sizes of the pictures as they are seen
        self.whole: list[
            tuple[Any, tuple[int, int]]
        ] = []  # the pictures, made smaller than a cell of a sheet, and their sizes
        self.more: list[tuple[str, str]] = []
        self.total: int | None = None  # documents of the corpus, where counting them needs no picture

    def add(self, item: Document | Reject, framing: Framing | int) -> None:
        """Add an item."""
        from model.hf.pictures_uni_x import to_rgb, upright
        from tokenization import storage
        from tokenization.frames import FURTHER
        from tokenization.preprocess import RejectedImage, open_image, preprocess
        from tokenization.readers import Reject
        from tools.inspection.cut_pictures import thumbnail

        if isinstance(item, Reject):
            self.rejects.append(item)
            return
        pictures, first_frames = [], 0
        try:
            for picture in item.pictures:
                image = open_image(
                    picture.data
                    if isinstance(picture.data, bytes)
                    else storage.read_bytes(cast(Path | str, picture.data))
                )
                pictures.append(preprocess(image, framing))
                self.sizes.append(image.size)
                turned = to_rgb(upright(image))
                self.upright.append(turned.size)
                if len(self.whole) < SHEET_PICTURES:
                    self.whole.append((thumbnail(turned), turned.size))
                self.modes[f"{image.format} {image.mode}"] += 1
                first_frames += FURTHER in image.info
        except (RejectedImage, OSError) as error:
            reason, detail = getattr(error, "reason", "missing_file"), getattr(error, "detail", str(error))
            self.rejects.append(Reject(item.id, item.source, item.file, reason, detail))
            return
        self.documents.append((item, pictures))
        if first_frames:
            self.first_frames.append({"pictures": first_frames, "example": item.file})
        self.sheet += [(picture, item.texts[0] if item.texts else item.id) for picture in pictures]

    def figures(self) -> list[tuple[str, str]]:
        """Findings in words."""
        from tokenization.frames import in_words, merged

        seen = len(self.documents) + len(self.rejects)
        lines = [("documents looked at", f"{seen:,}" if self.total is None else f"{seen:,} of {self.total:,}")]
        texts = [len(text) for found, _ in self.documents for text in found.texts]
        if texts:
            lines.append(("characters of a text", _spread(texts)))
        if self.sizes:
            lines.append(("shorter side of a picture, pixels", _spread([min(size) for size in self.sizes])))
            lines.append(("longer by shorter side", _spread([round(max(s) / min(s), 2) for s in self.sizes])))
            lines.append(("formats", ", ".join(f"{mode} {count:,}" for mode, count in self.modes.most_common())))
        if self.first_frames:
            lines.append(("first frames", in_words(merged(self.first_frames))))
        lines += self.more
        reasons = Counter(reject.reason for reject in self.rejects).most_common()
        counted = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        lines.append(("rejected", f"{len(self.rejects):,} ({len(self.rejects) / max(seen, 1):.1%}) {counted}".strip()))
        return lines

    def page(self, most: int) -> list[str]:
        """Findings as parts of a page, with the documents."""
        from tokenization.readers.document import Picture
        from tools.inspection.data_page import Shown, document, table

        parts = [f"<p>{html.escape(self.corpus.describe())}</p>", table(("what", "found"), self.figures())]
        for found, decoded in self.documents[:most]:
            pictures = iter(decoded)
            shown = []
            for part in found.parts:
                if isinstance(part, Picture):
                    shown.append(Shown(next(pictures), part.role))
                else:
                    shown += [Shown(text, part.role if not n else "or") for n, text in enumerate(part.wordings)]
            parts.append(document(f"{found.id} ({found.kind}; {found.file})", shown))
        if self.rejects:
            rejects = [(reject.reason, reject.id, reject.detail) for reject in self.rejects[:most]]
            parts.append(table(("rejected as", "id", "why"), rejects))
        return parts


def look(corpus: Corpus, documents: int, framing: Framing | int) -> CorpusFindings:
    """Read `documents` documents of files spread evenly over a corpus."""
    found = CorpusFindings(corpus)
    count = min(len(corpus.files), 8, documents)
    files = [corpus.files[place * len(corpus.files) // count] for place in range(count)]
    for number, file in enumerate(files):
        share = documents * (number + 1) // count - documents * number // count
        with corpus.open(file) as opened:
            items, records = _sample(corpus, opened, share)
            for item in items:
                found.add(item, framing)
        if records is not None and count == len(corpus.files):
            found.total = (found.total or 0) + records
    return found


def _sample(corpus: Corpus, file: OpenFile, share: int) -> tuple[Iterable[Document | Reject], int | None]:
    """`share` items of a file, and how many it has where counting them is cheap.

    They are the first ones, except for image-text pairs, which are sorted by folder: of these they are spread over the file,
    since passing over a pair reads no picture; and so is each beginning of them, since pages and sheets show the beginning.
    """
    from tokenization.readers import PAIRS

    if corpus.format is not PAIRS:
        return (item for _, item in islice(corpus.read(file, 0), share)), None
    records = corpus.scan(file)[0]
    share = min(share, records)
    wanted = {place * records // share for place in range(share)}
    items = [item for number, item in corpus.read(file, 0) if number in wanted]
    return [items[place] for place in sorted(range(len(items)), key=lambda place: place * GOLDEN % 1)], records


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:,} to {ordered[-1]:,}, median {ordered[len(ordered) // 2]:,}"
