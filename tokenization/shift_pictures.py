#!/usr/bin/env python
"""Data augmentation by shifts: copies of captioned images, each moved a little, for small corpora.

Every code of a moved picture differs, so a model that has seen each picture tens of times has something new to learn.
The input is any that tokenization/shard_images.py reads as pictures with captions, the output WebDataset tars. What
leaves the frame is lost, what comes in is white. Where a copy moves to follows from its name alone, so the same input
gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from typing import TYPE_CHECKING

from pretrain.system.errors import UserError, run_command
from tokenization.files import check_made_with, publish_folder

if TYPE_CHECKING:
    from PIL import Image

    from tokenization.readers import Corpus, CorpusFile

RECORD = ".moved.json"
"""Settings of a finished folder; hidden, because it is no file of the corpus."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tokenization/shift_pictures.py --input work/data/corpus/train/webdataset "
        "--output work/data/moved --copies 4 --by 8",
    )
    parser.add_argument("--input", required=True, help="pictures with captions, as shard_images.py takes them")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; a finished one is left as it is")
    parser.add_argument("--copies", type=int, default=4, help="copies of each picture (default: 4)")
    parser.add_argument("--by", type=int, default=8, help="pixels that a copy moves at most each way (default: 8)")
    arguments = parser.parse_args()
    for name in ("copies", "by"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: give at least 1")
    return arguments


def offset(name: str, by: int) -> tuple[int, int]:
    """Shift (right, down) in pixels from -by to by, not both 0, derived from the copy's name."""
    side = 2 * by + 1
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % (side * side - 1)
    place += place >= side * side // 2  # skips (0, 0)
    return place % side - by, place // side - by


def move(picture: Image.Image, right: int, down: int) -> Image.Image:
    """An image shifted by so many pixels within its frame, alpha on white as in `preprocess`."""
    from PIL import Image

    width, height = picture.size
    moved = picture.convert("RGBA").crop((-right, -down, width - right, height - down))  # transparent beyond the edge
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), moved).convert("RGB")


def move_file(corpus: Corpus, file: CorpusFile, target: Path, copies: int, by: int) -> Counter[str]:
    """Write the copies of one file's images as a tar -> how many, as "moved", and the rejects by reason."""
    from tokenization.preprocess import RejectedImage, open_image
    from tokenization.readers import Reject
    from tokenization.storage import read_bytes

    counts: Counter[str] = Counter()
    with corpus.open(file) as opened, tarfile.open(target, "w") as tar:
        for number, item in corpus.read(opened, 0):
            if isinstance(item, Reject):
                counts[item.reason] += 1
                continue
            (source,) = (picture.data for picture in item.pictures)
            try:
                picture = open_image(source if isinstance(source, bytes) else read_bytes(cast(Path | str, source)))
            except RejectedImage as bad:
                counts[bad.reason] += 1
                continue
            if min(picture.size) <= by:  # a copy could be moved out of its frame, and its captions name nothing
                counts["small_picture"] += 1
                continue
            for copy in range(1, copies + 1):
                png = io.BytesIO()
                move(picture, *offset(f"{item.id.rpartition('/')[2]}-moved{copy}", by)).save(png, "PNG")
                record = json.dumps({"id": f"{item.id}-moved{copy}", "captions": item.texts}, ensure_ascii=False)
                for suffix, data in (("png", png.getvalue()), ("json", record.encode())):
                    entry = tarfile.TarInfo(f"{number:08d}-{copy}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
                counts["moved"] += 1
    return counts


def check_finished(output: Path, settings: dict[str, int]) -> None:
    """Raises UserError if a folder is none of moved copies, or one of other settings; earlier releases wrote these nowhere."""
    if (output / RECORD).is_file():
        check_made_with(output, RECORD, settings)
    elif not (output / "00000.tar").is_file():
        raise UserError(f"{output}: is there already, without moved copies: choose another --output")


def main() -> int:
    """Build the folder under a temporary name and publish it by one rename."""
    arguments = parse_arguments()
    output = arguments.output
    settings = {"copies": arguments.copies, "by": arguments.by}
    if output.exists():
        check_finished(output, settings)
        print(f"{output} is there already")
        return 0
    from tokenization.readers import open_corpus
    from tokenization.readers.document import CAPTION_PAIR

    corpus = open_corpus(arguments.input)
    if corpus.kind != CAPTION_PAIR:
        raise UserError(
            f"{arguments.input}: holds no pictures with captions (it holds {corpus.kind}): give another --input"
        )
    temporary = output.with_name(output.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    counts: Counter[str] = Counter()
    try:
        temporary.mkdir(parents=True)
        for number, file in enumerate(corpus.files):
            counts += move_file(corpus, file, temporary / f"{number:05d}.tar", arguments.copies, arguments.by)
        (temporary / RECORD).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror or error}") from error
    moved = counts.pop("moved", 0)
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
    if not moved:
        raise UserError(f"{arguments.input}: none of its pictures can be used ({rejected or 'it is empty'})")
    publish_folder(temporary, output)
    print(
        f"{output}: {moved:,} pictures" + (f"; {counts.total():,} documents rejected ({rejected})" if rejected else "")
    )
    return 0


if __name__ == "__main__":
    run_command(main)
