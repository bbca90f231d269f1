#!/usr/bin/env python
"""Copies of the pictures of WebDataset tars, each moved a little: more training data where pictures are few.

Every code of a moved picture differs, so a model that has seen each picture tens of times has something new to learn.
What leaves the frame is lost, what comes in is transparent; everything else of a sample is kept. Where a copy moves to
follows from its name alone, so the same input gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import hashlib
import io
import shutil
import tarfile
from itertools import groupby

from model.errors import UserError, run_command
from tokenization.files import publish_folder, temporary_name


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tokenization/shift_pictures.py --input work/data/corpus/train/webdataset "
        "--output work/data/shifted --copies 4 --by 8",
    )
    parser.add_argument("--input", type=Path, required=True, help="folder of WebDataset tars with PNG pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; a finished one is left as it is")
    parser.add_argument("--copies", type=int, default=4, help="copies of each picture (default: 4)")
    parser.add_argument("--by", type=int, default=8, help="pixels that a copy moves at most each way (default: 8)")
    arguments = parser.parse_args()
    for name in ("copies", "by"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: give at least 1")
    return arguments


def offset(name: str, by: int) -> tuple[int, int]:
    """(right, down) in pixels from -by to by, not both 0, from the name of the copy."""
    side = 2 * by + 1
    place = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) % (side * side - 1)
    place += place >= side * side // 2  # passes over the middle, which is no move
    return place % side - by, place // side - by


def move(png: bytes, right: int, down: int) -> bytes:
    """A PNG picture moved by so many pixels within its frame."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        moved = Image.new("RGBA", picture.size)
        moved.paste(picture.convert("RGBA"), (right, down))
    data = io.BytesIO()
    moved.save(data, "PNG")
    return data.getvalue()


def shift_tar(source: Path, target: Path, copies: int, by: int) -> int:
    """Write the copies of one tar's samples, the members of a copy side by side; the number of pictures written."""
    pictures = 0
    with tarfile.open(source) as tar, tarfile.open(target, "w") as moved:
        files = (member for member in tar if member.isfile())
        for key, members in groupby(files, key=lambda member: member.name.partition(".")[0]):
            sample = [(member.name[len(key) :], tar.extractfile(member).read()) for member in members]
            for copy in range(1, copies + 1):
                name = f"{key}-moved{copy}"
                for suffix, data in sample:
                    is_picture = suffix.lower() == ".png"
                    part = move(data, *offset(name, by)) if is_picture else data
                    entry = tarfile.TarInfo(name + suffix)
                    entry.size = len(part)
                    moved.addfile(entry, io.BytesIO(part))
                    pictures += is_picture
    return pictures


def main() -> int:
    """Make the folder under another name and publish it by one rename."""
    arguments = parse_arguments()
    output = arguments.output
    if output.exists():
        print(f"{output} is there already")
        return 0
    tars = sorted(arguments.input.glob("*.tar"))
    if not tars:
        raise UserError(f"{arguments.input}: no .tar in it: give a folder of WebDataset tars")
    temporary = temporary_name(output)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    pictures = 0
    for path in tars:
        try:
            pictures += shift_tar(path, temporary / path.name, arguments.copies, arguments.by)
        except (OSError, tarfile.TarError) as error:  # PIL's own errors are OSErrors too
            shutil.rmtree(temporary)
            raise UserError(f"{path}: {error}: make the tar again, or leave it out") from error
    publish_folder(temporary, output)
    print(f"{output}: {pictures:,} pictures")
    return 0


if __name__ == "__main__":
    run_command(main)
