#!/usr/bin/env python
"""Show what shard_images.py would make of its input, before a long job: format, documents, pictures, rejects.

Some documents are read of files spread over each input, and their pictures decoded. The output is a page with the
documents as they were understood, a contact sheet of the pictures as the image tokenizer will see them, and one of what is
cut off them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import html
import warnings
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

from model.shapes import FITS, Framing, grids_from
from pretrain.system.errors import UserError, run_command
from tokenization.files import save_picture

if TYPE_CHECKING:
    from tokenization.readers import Corpus, Document, Reject

SHEET_PICTURES = 60
LITTLE = 0.1
"""An input of which a smaller share can be used was not understood."""
REASONS_TO_SAY = 5


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/inspect_data.py --input work/data/corpus/train/folder --output work/inspected",
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help="as for shard_images.py")
    add("--image-root", default="", metavar="PATH", help="as for shard_images.py")
    add("--output", type=Path, required=True, help="folder for index.html, contact_sheet.png and cut_sheet.png")
    add("--documents", type=int, default=100, help="documents to read of each input (default: %(default)s)")
    add("--show", type=int, default=20, help="of these, how many the page shows (default: %(default)s)")
    add("--image-size", type=int, default=256, help="side of squares in pixels (default: %(default)s)")
    add("--shapes", default="square", metavar="SET", help="as for shard_images.py (default: %(default)s)")
    add("--fit", choices=FITS, default="crop", help="as for shard_images.py (default: %(default)s)")
    add(
        "--pixels-per-code",
        type=int,
        default=16,
        metavar="N",
        help="side of a code of the image tokenizer, 8 of openmoji-64 (default: %(default)s)",
    )
    arguments = parser.parse_args()
    for name in ("documents", "show", "image_size", "pixels_per_code"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if arguments.shapes != "square" and arguments.image_size % arguments.pixels_per_code:
        parser.error(f"--image-size must be a multiple of --pixels-per-code {arguments.pixels_per_code}")
    return arguments


def framing_of(arguments: argparse.Namespace) -> Framing:
    """The shapes that are asked for; squares need no pixels per code."""
    code = 1 if arguments.shapes == "square" else arguments.pixels_per_code
    return Framing(grids_from(arguments.shapes, arguments.image_size // code), code, arguments.fit == "pad")


def main() -> int:
    """Run the command; the exit code is 1 if of an input next to nothing can be used."""
    arguments = parse_arguments()
    framing = framing_of(arguments)
    warnings.filterwarnings("ignore", module=r"PIL\b")

    from tokenization.contact_sheet import contact_sheet
    from tokenization.readers import open_corpora
    from tools.inspection.cut_pictures import cut_picture, losses
    from tools.inspection.data_page import embedded, write_page

    parts: list[str] = []
    little: list[str] = []
    sheet: list[tuple[Any, str]] = []
    cut: list[Any] = []
    for corpus in open_corpora(arguments.input, arguments.image_root):
        print(corpus.describe())
        if beside := corpus.warning():
            print(f"warning: {beside}")
        parts.append(f"<h2>{html.escape(corpus.source)}</h2>")
        found = look(corpus, arguments.documents, framing)
        found.more = losses(found.upright, framing)
        for what, value in found.figures():
            print(f"  {what}: {value}")
        for reject in list({reject.reason: reject for reject in reversed(found.rejects)}.values())[:REASONS_TO_SAY]:
            print(f"  rejected as {reject.reason}: {reject.file[:100]}: {reject.detail[:300]}")
        if len(found.documents) < LITTLE * (len(found.documents) + len(found.rejects)):
            little.append(f"{corpus.path} ({len(found.documents):,} of {len(found.documents) + len(found.rejects):,})")
        parts += found.page(arguments.show)
        sheet += found.sheet
        cut += found.whole
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        if sheet:
            pictures, labels = zip(*sheet[:SHEET_PICTURES])
            save_picture(contact_sheet(pictures, labels), arguments.output / "contact_sheet.png")
            parts.append("<h2>Pictures as the image tokenizer will see them</h2>")
            parts.append(embedded(contact_sheet(pictures, labels), "contact sheet", "wide"))
            shown = [cut_picture(picture, framing) for picture in cut[:SHEET_PICTURES]]
            whole = contact_sheet([picture for picture, _ in shown], [said for _, said in shown])
            save_picture(whole, arguments.output / "cut_sheet.png")
            parts.append("<h2>What is lost of them: the veiled parts</h2>")
            parts.append(embedded(whole, "what is lost", "wide"))
        write_page(arguments.output / "index.html", "What the input holds", parts)
    except OSError as error:
        raise UserError(f"{error.filename or arguments.output}: cannot be written: {error.strerror}") from error
    print(f"wrote {arguments.output / 'index.html'}")
    if little:
        print(f"error: next to nothing can be used of {', '.join(little)}; the reasons stand above", file=sys.stderr)
    return 1 if little else 0


class CorpusFindings:
    """What was seen of one input: its documents with their pictures decoded, and what would be rejected."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self.documents: list[tuple[Document, list[Any]]] = []
        self.rejects: list[Reject] = []
        self.sizes: list[tuple[int, int]] = []
        self.modes: Counter[str] = Counter()
        self.sheet: list[tuple[Any, str]] = []
        self.upright: list[tuple[int, int]] = []  # sizes of the pictures as they are seen
        self.whole: list[Any] = []  # the pictures, none wider or higher than a cell of a sheet
        self.more: list[tuple[str, str]] = []

    def add(self, item: Document | Reject, framing: Framing | int) -> None:
        """Take an item as it was read."""
        from model.hf.pictures_uni_x import to_rgb, upright
        from tokenization import storage
        from tokenization.preprocess import RejectedImage, open_image, preprocess
        from tokenization.readers import Reject
        from tools.inspection.cut_pictures import thumbnail

        if isinstance(item, Reject):
            self.rejects.append(item)
            return
        pictures = []
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
                    self.whole.append(thumbnail(turned))
                self.modes[f"{image.format} {image.mode}"] += 1
        except (RejectedImage, OSError) as error:
            reason, detail = getattr(error, "reason", "missing_file"), getattr(error, "detail", str(error))
            self.rejects.append(Reject(item.id, item.source, item.file, reason, detail))
            return
        self.documents.append((item, pictures))
        self.sheet += [(picture, item.texts[0] if item.texts else item.id) for picture in pictures]

    def figures(self) -> list[tuple[str, str]]:
        """What was found, in words."""
        seen = len(self.documents) + len(self.rejects)
        lines = [("documents looked at", f"{seen:,}")]
        texts = [len(text) for found, _ in self.documents for text in found.texts]
        if texts:
            lines.append(("characters of a text", _spread(texts)))
        if self.sizes:
            lines.append(("shorter side of a picture, pixels", _spread([min(size) for size in self.sizes])))
            lines.append(("longer by shorter side", _spread([round(max(s) / min(s), 2) for s in self.sizes])))
            lines.append(("formats", ", ".join(f"{mode} {count:,}" for mode, count in self.modes.most_common())))
        lines += self.more
        reasons = Counter(reject.reason for reject in self.rejects).most_common()
        counted = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        lines.append(("rejected", f"{len(self.rejects):,} ({len(self.rejects) / max(seen, 1):.1%}) {counted}".strip()))
        return lines

    def page(self, most: int) -> list[str]:
        """The same as parts of a page, with the documents."""
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
            for _, item in islice(corpus.read(opened, 0), share):
                found.add(item, framing)
    return found


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:,} to {ordered[-1]:,}, median {ordered[len(ordered) // 2]:,}"


if __name__ == "__main__":
    run_command(main)
