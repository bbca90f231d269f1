"""Small corpora in every layout, and a way to run shard_images on them inside the test's process."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from pretrain.system.errors import run_command
from tokenization import shard_images


def picture(seed: int, size: int = 24) -> bytes:
    """A PNG of blurred noise, the same for the same seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def captions(seed: int) -> list[str]:
    """One to three captions, in several scripts."""
    return [f"picture {seed}", f"Bild {seed} ü", f"图片 {seed}"][: 1 + seed % 3]


def folder_corpus(folder: Path, count: int) -> Path:
    """images/000.png ... and captions.jsonl, every line with an id."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for seed in range(count):
        (folder / f"images/{seed:03d}.png").write_bytes(picture(seed))
        lines.append({"image": f"images/{seed:03d}.png", "captions": captions(seed), "id": f"{seed:03d}"})
    return jsonl(folder / "captions.jsonl", lines).parent


def tar_corpus(folder: Path, count: int, per_tar: int) -> Path:
    """The same documents as WebDataset tars, captions in KEY.json."""
    folder.mkdir(parents=True)
    for start in range(0, count, per_tar):
        members = []
        for seed in range(start, min(start + per_tar, count)):
            record = {"captions": captions(seed), "id": f"{seed:03d}"}
            members += [(f"{seed:03d}.png", picture(seed)), (f"{seed:03d}.json", json.dumps(record).encode())]
        tar(folder / f"{start:05d}.tar", members)
    return folder


def parquet_corpus(path: Path, count: int, as_struct: bool) -> Path:
    """The same documents as one Parquet file, the pictures as bytes or as Hugging Face's struct."""
    images: list[Any] = [picture(seed) for seed in range(count)]
    if as_struct:
        images = [{"bytes": image, "path": None} for image in images]
    texts = [captions(seed) for seed in range(count)]
    table = pyarrow.table({"image": images, "captions": texts, "id": [f"{seed:03d}" for seed in range(count)]})
    pyarrow.parquet.write_table(table, path, row_group_size=7)
    return path


def jsonl(path: Path, records: list[Any]) -> Path:
    """A JSONL file; a record of bytes is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """An uncompressed tar of these members."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


SHAPED_SIZES = [
    (24, 24),
    (40, 30),
    (30, 40),
    (60, 20),
    (20, 60),
    (48, 27),
    (36, 24),
    (24, 36),
    (27, 48),
    (35, 15),
    (14, 33),
]
"""Width and height of a picture for each shape of `--shapes aspect`."""


def shaped_corpus(folder: Path, sizes: list[tuple[int, int]] = SHAPED_SIZES) -> Path:
    """A captioned picture of noise of each size."""
    import numpy
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    for number, (width, height) in enumerate(sizes):
        noise = numpy.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
        Image.fromarray(noise).save(folder / f"images/{number:03d}.png")
    captioned = [{"image": f"images/{number:03d}.png", "caption": f"picture {number}"} for number in range(len(sizes))]
    jsonl(folder / "captions.jsonl", captioned)
    return folder


@dataclass(frozen=True)
class Command:
    """shard_images with the tiny tokenizers filled in. Calling it gives (exit code, what it wrote to stderr)."""

    vq: Path
    tokenizer: Path
    capsys: pytest.CaptureFixture[str] | None = None

    def arguments(self, source: Path | list[Path], output: Path, **options: Any) -> list[str]:
        options = {"vq": self.vq, "tokenizer": self.tokenizer, "workers": 0, "samples_per_part": 8} | options
        sources = source if isinstance(source, list) else [source]
        flags = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        return ["--input", *map(str, sources), "--output", str(output), *flags]

    def __call__(self, source: Path | list[Path], output: Path, *more: str, **options: Any) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: shard_images.main([*self.arguments(source, output, **options), *more]))
        return stop.value.code, self.capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejects_of(output: Path) -> list[dict[str, str]]:
    """The lines of rejects.jsonl."""
    return [json.loads(line) for line in (output / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]


def error_line(stderr: str) -> str:
    """The one line that begins with `error:`."""
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    return line


def child(work: Callable[[], Any]) -> int:
    """Start `work` in a forked process, its output thrown away. Returns the process id."""
    process = os.fork()
    if process == 0:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        code = 70
        try:
            code = work() or 0
        finally:
            os._exit(code)
    return process
