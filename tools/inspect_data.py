#!/usr/bin/env python
"""Preview what shard_images.py would make of its input: format, documents, images, rejects.

A sample of documents is read from files spread over each input, and their images decoded. The output is a page with the
parsed documents, a contact sheet of the preprocessed images, and one of the cropped parts.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import html
import warnings
from typing import Any

from model.shapes import FITS, Framing, grids_from
from pretrain.system.disk import disk_error
from pretrain.system.errors import UserError, run_command
from tokenization.files import check_outside, save_picture
from tools.inspection.corpus import (
    LITTLE,
    SHEET_PICTURES,
    look,
)


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
    """Framing of the requested shapes; squares need no pixels per code."""
    code = 1 if arguments.shapes == "square" else arguments.pixels_per_code
    return Framing(grids_from(arguments.shapes, arguments.image_size // code), code, arguments.fit == "pad")


def main() -> int:
    """Run the command; the exit code is 1 if almost nothing of an input can be used."""
    arguments = parse_arguments()
    framing = framing_of(arguments)
    warnings.filterwarnings("ignore", module=r"PIL\b")

    from tokenization.contact_sheet import contact_sheet
    from tokenization.preprocess import check_side
    from tokenization.readers import PAIRS, open_corpora
    from tokenization.reject_counts import RejectCounts
    from tools.inspection.cut_pictures import cut_picture, losses
    from tools.inspection.data_page import embedded, write_page

    parts: list[str] = []
    little: list[str] = []
    sheet: list[tuple[Any, str]] = []
    cut: list[tuple[Any, tuple[int, int]]] = []
    check_side(arguments.image_size)
    corpora = open_corpora(arguments.input, arguments.image_root)
    check_outside(arguments.output, [corpus.path for corpus in corpora if corpus.format is PAIRS])
    for corpus in corpora:
        print(corpus.describe())
        if beside := corpus.warning():
            print(f"warning: {beside}")
        parts.append(f"<h2>{html.escape(corpus.source)}</h2>")
        found = look(corpus, arguments.documents, framing)
        found.more = losses(found.upright, framing)
        for what, value in found.figures():
            print(f"  {what}: {value}")
        rejects = RejectCounts()
        for reject in found.rejects:
            rejects.add(reject)
        for example in rejects.examples():
            print(f"  {example}")
        if not found.documents or len(found.documents) < LITTLE * (len(found.documents) + len(found.rejects)):
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
            shown = [cut_picture(picture, size, framing) for picture, size in cut[:SHEET_PICTURES]]
            whole = contact_sheet([picture for picture, _ in shown], [label for _, label in shown])
            save_picture(whole, arguments.output / "cut_sheet.png")
            parts.append("<h2>What is lost of them: the veiled parts</h2>")
            parts.append(embedded(whole, "what is lost", "wide"))
        write_page(arguments.output / "index.html", "What the input holds", parts)
    except OSError as error:
        if disk_error(error):
            raise  # run_command names the remedy
        raise UserError(
            f"{error.filename or arguments.output}: cannot be written: {error.strerror}: choose another --output"
        ) from error
    print(f"wrote {arguments.output / 'index.html'}")
    if little:
        print(f"error: next to nothing can be used of {', '.join(little)}; the reasons stand above", file=sys.stderr)
    return 1 if little else 0


if __name__ == "__main__":
    run_command(main)
