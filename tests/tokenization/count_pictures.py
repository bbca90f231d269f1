#!/usr/bin/env python
"""Lay real pictures out in every form that is read, and see that each is read or rejected with a reason: none is lost, none told twice.

Give it folders with some thousand pictures of many kinds and shapes, broken ones too. Some get no text, and some a text that is no UTF-8.
Each form is read as shard_images reads it, pictures decoded and scaled; equal bytes are decoded once. Exit code 1 if a count is off.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pretrain.system.errors import UserError, run_command

SIDE = 64
ROWS = 200  # of a Parquet or Arrow file
PER_TAR = 500


class Found(NamedTuple):
    """A picture file, the name that it has in a corpus, and its text: None for none."""

    path: Path
    name: str
    text: bytes | None


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tests/tokenization/count_pictures.py --pictures /usr/share --most 6000",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="folders with pictures anywhere below them",
    )
    parser.add_argument("--most", type=int, default=10_000, help="pictures that are taken (default: %(default)s)")
    parser.add_argument("--forms", nargs="*", default=[], help="only these (default: all)")
    return parser.parse_args()


def main() -> int:
    """Count, and print a line for each form."""
    arguments = parse_arguments()
    warnings.filterwarnings("ignore")
    pictures = find(arguments.pictures, arguments.most)
    if not pictures:
        raise UserError(f"{arguments.pictures[0]}: no picture files below it")
    print(
        f"{len(pictures):,} picture files, {sum(found.path.stat().st_size for found in pictures) / 1e6:,.0f} MB",
        flush=True,
    )
    outcomes: dict[bytes, str] = {}
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, lay_out in FORMS.items():
            if arguments.forms and name not in arguments.forms:
                continue
            began, place = time.monotonic(), Path(folder, name)
            place.mkdir()
            path = lay_out(place, pictures)
            read, reasons, told = count(path, outcomes)
            shutil.rmtree(place)
            right = read + reasons.total() == len(pictures) and not told
            wrong += not right
            why = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
            print(
                f"{'ok  ' if right else 'LOST'} {name}: {read:,} read + {reasons.total():,} rejected = {read + reasons.total():,} "
                f"of {len(pictures):,} found ({why}){'; ' + told if told else ''}; {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return 1 if wrong else 0


def find(folders: list[Path], most: int) -> list[Found]:
    """The picture files below these folders, named anew: by their number, in folders and with dots and spaces."""
    from tokenization.readers.pairs import is_picture

    paths = sorted(
        {path.resolve() for folder in folders for path in folder.rglob("*") if is_picture(path.name) and path.is_file()}
    )
    found = []
    for number, path in enumerate(paths[:: max(1, len(paths) // most)][:most]):
        stem = (f"{number:05d}", f"d{number % 7}/v1.5_{number:05d}", f"d{number % 3}/e/p {number:05d} ä")[number % 3]
        text = None if number % 41 == 0 else b"\xff\xfe no text" if number % 37 == 0 else f"picture {number}".encode()
        found.append(Found(path, stem + path.suffix, text))
    return found


def count(path: Path, outcomes: dict[bytes, str]) -> tuple[int, Counter[str], str]:
    """Pictures that are read, those that are rejected by reason, and in words what was told twice or of no picture."""
    from tokenization.filters import Filters
    from tokenization.pipeline import Preparation
    from tokenization.readers import Document, open_corpus

    preparation, read, reasons, places = Preparation(None, SIDE, Filters()), 0, Counter(), Counter()
    corpus = open_corpus(path)
    for file in corpus.files:
        with corpus.open(file) as opened:
            for number, item in corpus.read(opened, 0):
                if isinstance(item, Document):
                    pictures, bad = (
                        len(item.pictures),
                        [why for each in item.pictures if (why := outcome(preparation, each, outcomes))],
                    )
                    read += 0 if bad else pictures
                    if bad:
                        reasons[bad[0]] += pictures
                else:
                    reasons[item.reason] += 1
                places[opened.name, number] += 1
    twice = [place for place, times in places.items() if times > 1]
    return read, reasons, f"{len(twice)} records told twice, first {twice[0]}" if twice else ""


def outcome(preparation, picture, outcomes: dict[bytes, str]) -> str:
    """The reason why a picture is rejected; '' if it is not."""
    from tokenization import storage
    from tokenization.preprocess import RejectedImage

    data = picture.data if isinstance(picture.data, bytes) else None
    if data is None:
        try:
            data = storage.read_bytes(str(picture.data))
        except OSError:
            return "missing_file"
    key = hashlib.blake2b(data).digest()
    if key not in outcomes:
        try:
            preparation.picture(type(picture)(data))
            outcomes[key] = ""
        except RejectedImage as bad:
            outcomes[key] = bad.reason
    return outcomes[key]


def put(folder: Path, found: Found) -> Path:
    """The picture under its name in a folder: a link if that can be had."""
    path = folder / found.name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(found.path, path)
    except OSError:
        path.write_bytes(found.path.read_bytes())
    return path


def pairs(folder: Path, pictures: list[Found]) -> Path:
    for found in pictures:
        path = put(folder, found)
        if found.text is not None:
            path.with_name(path.name.rpartition(".")[0] + ".txt").write_bytes(found.text)
    return folder


def words(found: Found) -> str | None:
    """The text as JSON and Arrow can hold it."""
    return None if found.text is None else found.text.decode("utf-8", "replace")


def jsonl(folder: Path, pictures: list[Found]) -> Path:
    for found in pictures:
        put(folder, found)
    lines = [{"image": found.name, **({"caption": words(found)} if found.text else {})} for found in pictures]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def llava(folder: Path, pictures: list[Found]) -> Path:
    for found in pictures:
        put(folder, found)
    turns = [
        {
            "image": found.name,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": words(found) or ""},
            ],
        }
        for found in pictures
    ]
    (folder / "mix.json").write_text(json.dumps(turns))
    return folder / "mix.json"


def ordered(folder: Path, pictures: list[Found]) -> Path:
    for found in pictures:
        put(folder, found)
    lines = [{"parts": [{"text": words(found) or "x"}, {"image": found.name}]} for found in pictures]
    (folder / "parts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "parts.jsonl"


def tars(folder: Path, pictures: list[Found], by_suffix: bool = False) -> Path:
    for start in range(0, len(pictures), PER_TAR):
        members = []
        for found in pictures[start : start + PER_TAR]:
            stem = found.name.rpartition(".")[0]
            members += [
                (found.name, found.path.read_bytes()),
                *([(f"{stem}.txt", found.text)] if found.text is not None else []),
            ]
        if by_suffix:
            members.sort(key=lambda member: (member[0].rpartition(".")[2], member[0]))
        with tarfile.open(folder / f"{start:06d}.tar", "w") as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder


def tables(pictures: list[Found], columns: Callable[[list[Found]], dict]) -> Iterator:
    import pyarrow

    for start in range(0, len(pictures), ROWS):
        yield pyarrow.table(columns(pictures[start : start + ROWS]))


def parquet(folder: Path, pictures: list[Found], columns: Callable[[list[Found]], dict]) -> Path:
    import pyarrow.parquet

    for number, table in enumerate(tables(pictures, columns)):
        pyarrow.parquet.write_table(table, folder / f"{number:05d}.parquet")
    return folder


def as_bytes(some: list[Found]) -> dict:
    return {
        "image": [{"bytes": found.path.read_bytes(), "path": found.name} for found in some],
        "caption": [words(found) for found in some],
    }


def as_paths(folder: Path) -> Callable[[list[Found]], dict]:
    import pyarrow

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])

    def columns(some: list[Found]) -> dict:
        images = [{"bytes": None, "path": str(put(folder, found))} for found in some]
        return {"image": pyarrow.array(images, kind), "caption": [words(found) for found in some]}

    return columns


def as_turns(some: list[Found]) -> dict:
    return {
        "images": [[{"bytes": found.path.read_bytes(), "path": None}] for found in some],
        "texts": [[{"user": "What?", "assistant": words(found) or ""}] for found in some],
    }


def saved(folder: Path, pictures: list[Found]) -> Path:
    """As `datasets` saves it."""
    import pyarrow

    names = []
    for number, table in enumerate(tables(pictures, as_bytes)):
        names.append(f"data-{number:05d}-of-{-(-len(pictures) // ROWS):05d}.arrow")
        with (
            pyarrow.OSFile(str(folder / names[-1]), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as stream,
        ):
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def edits(folder: Path, pictures: list[Found]) -> Path:
    """Two pictures a row, as BAGEL has them; of an odd number the last row has three."""
    import pyarrow.parquet

    groups = [pictures[start : start + 2] for start in range(0, len(pictures) - len(pictures) % 2, 2)]
    if len(pictures) % 2:
        groups[-1] = pictures[-3:]
    for start in range(0, len(groups), ROWS):
        some = groups[start : start + ROWS]
        rows = {
            "image_list": [[found.path.read_bytes() for found in group] for group in some],
            "instruction_list": [[["make it so"]] * (len(group) - 1) for group in some],
        }
        pyarrow.parquet.write_table(pyarrow.table(rows), folder / f"{start:05d}.parquet")
    return folder


FORMS: dict[str, Callable[[Path, list[Found]], Path]] = {
    "pairs": pairs,
    "jsonl": jsonl,
    "webdataset": tars,
    "webdataset-by-suffix": lambda folder, pictures: tars(folder, pictures, by_suffix=True),
    "parquet": lambda folder, pictures: parquet(folder, pictures, as_bytes),
    "parquet-by-path": lambda folder, pictures: parquet(folder, pictures, as_paths(folder)),
    "datasets": saved,
    "llava": llava,
    "finevision": lambda folder, pictures: parquet(folder, pictures, as_turns),
    "edits": edits,
    "in-order": ordered,
}

if __name__ == "__main__":
    run_command(main)
