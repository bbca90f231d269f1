"""Inputs of the fuzz trial that are more than the bytes of one file: folders of pairs, columns of JSON, tars with holes and links.

A folder is packed into bytes so that a mutated one is named by its number as everything else is. Its names are mutated too.
"""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

PAIRS, JSON_PARQUET, JSON_ARROW = "pairs.folder", "values.parquet", "values.arrow"
NAMES = (
    "",
    ".",
    "._a.png",
    "a",
    "A",
    "b.txt",
    "a.png.txt",
    "v1.5_0.png",
    "ä.png",
    ".png",
    "d/e.txt",
    "d.png/e.txt",
    "a.JPG",
    "a.caption",
    "a.json",
    "x" * 200,
)


def packed(files: dict[str, bytes]) -> bytes:
    """A folder as bytes."""
    return json.dumps({name: base64.b64encode(data).decode() for name, data in files.items()}).encode()


def unpacked(data: bytes) -> dict[str, bytes]:
    """What `packed` was given."""
    return {name: base64.b64decode(text) for name, text in json.loads(data).items()}


def folder_seed(jpeg: bytes, picture: bytes) -> bytes:
    """Pairs of one name in nested folders, with texts in each of the three forms."""
    return packed(
        {
            "a.png": picture,
            "a.txt": b"a cat",
            "d/b.jpg": jpeg,
            "d/b.json": b'{"captions": ["b", "zwei"], "id": "b"}',
            "d/e/c.png": picture,
            "d/e/c.caption": "\ufeffein Haus".encode(),
            "d/c.webp": b"RIFF",
            "d/c.txt": b"broken",
        }
    )


def mutated_folder(data: bytes, dice: random.Random, mutate) -> bytes:
    """The folder with some files lost, renamed, copied, or changed by `mutate(bytes, dice)`."""
    files = unpacked(data)
    for _ in range(dice.choice([1, 1, 2, 4])):
        name = dice.choice(list(files))
        how = dice.randrange(5)
        if how == 0 and len(files) > 2:
            del files[name]
        elif how == 1:
            files[dice.choice(NAMES) if dice.random() < 0.5 else name + dice.choice(NAMES)] = files.pop(name)
        elif how == 2:
            files[name.rpartition(".")[0] + dice.choice([".png", ".txt", ".json", ".caption", ".jpeg", ".tar"])] = (
                files[name]
            )
        else:
            files[name] = mutate(files[name], dice)
    return packed(files)


def write_folder(folder: Path, data: bytes) -> Path:
    """The packed folder on disk, without names that a file system cannot have."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in sorted(unpacked(data).items()):
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (OSError, ValueError):  # a folder of that name, an empty name
            continue
    return folder


def pictures_in(folder: Path) -> int:
    """Picture files that a person would count."""
    from tokenization.readers.pairs import is_picture

    return sum(is_picture(path.name) for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


JSON_VALUES = ['"a \\"quoted\\" cat"', '["one", "zwei"]', '"ä"', '{"a": [1, null]}']


def mutated_values(dice: random.Random, mutate) -> list[str]:
    """Texts of JSON columns; each stays UTF-8, as Arrow demands."""
    return [mutate(text.encode(), dice).decode("utf-8", "ignore") for text in JSON_VALUES]


def json_columns(name: str, values: list[str], pictures: list[bytes]) -> bytes:
    """The bytes of a Parquet or Arrow file whose captions are of a JSON type."""
    import pyarrow
    import pyarrow.parquet

    captions = pyarrow.array(values, pyarrow.json_())
    table = pyarrow.table({"image": pyarrow.array(pictures, pyarrow.binary()), "caption": captions})
    sink = io.BytesIO()
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(table, sink)
    else:
        with pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    return sink.getvalue()


def sparse_tar(folder: Path, picture: bytes, form: str) -> bytes:
    """A tar of GNU tar with a hole in its picture."""
    with open(folder / "hole.png", "wb") as file:
        file.write(picture)
        file.truncate(1 << 17)
    (folder / "hole.txt").write_text("a hole")
    subprocess.run(
        ["tar", f"--format={form}", "--sparse", "-cf", "sparse.tar", "hole.png", "hole.txt"], cwd=folder, check=True
    )
    return (folder / "sparse.tar").read_bytes()


def linked_tar(picture: bytes) -> bytes:
    """A tar with hard links to a picture and a text of it, and a symbolic one."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in (("a.png", picture), ("a.txt", b"A")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target, kind in (
            ("b.png", "a.png", tarfile.LNKTYPE),
            ("b.txt", "a.txt", tarfile.LNKTYPE),
            ("c.png", "a.png", tarfile.SYMTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return sink.getvalue()
