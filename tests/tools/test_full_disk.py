"""Commands on a disk without room: one line with the path and the remedy, exit code 1, and nothing half-made is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.pretrain.tiny_run import TinyData
from tests.small_disk import read_only, small_disk
from tests.tools.test_convert_from_hf import write_base
from tests.tools.tiny_export import write_export


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_data: TinyData) -> Path:
    """A language model, an export, captions, and pictures with their texts, also as shards."""
    folder = tmp_path_factory.mktemp("inputs")
    write_base(folder / "base", "qwen2", True)
    write_export(folder / "export")
    (folder / "captions.jsonl").write_text(
        "".join(json.dumps({"caption": f"red thing {n} {n * n}"}) + "\n" for n in range(99))
    )
    (folder / "pictures").symlink_to(tiny_data.corpus / "train/folder")
    for name in ("vq", "tokenizer", "train", "heldout"):
        (folder / name).symlink_to(getattr(tiny_data, name))
    return folder


def arguments_of(name: str, inputs: Path, output: Path) -> list[object]:
    return {
        "convert_from_hf": [
            "tools/convert_from_hf.py",
            "--hf",
            inputs / "base",
            "--output",
            output,
            "--codebook-size",
            64,
        ],
        "generate": ["tools/generate.py", "--model", inputs / "export", "--prompt", "a cat", "--output", output],
        "inspect_data": ["tools/inspect_data.py", "--input", inputs / "pictures", "--output", output],
        "inspect_shards": [
            "tools/inspect_shards.py",
            "--shards",
            inputs / "train",
            "--vq",
            inputs / "vq",
            "--output",
            output,
        ],
        "new_run": [
            "tools/new_run.py",
            *("--shards", inputs / "train", "--heldout", inputs / "heldout", "--tokenizer", inputs / "tokenizer"),
            *("--vq", inputs / "vq", "--folder", output, "--output", output.with_name("run.yaml")),
        ],
        "train_tokenizer": [
            "tokenization/train_tokenizer.py",
            "--captions",
            inputs / "captions.jsonl",
            "--output",
            output,
            "--vocab-size",
            400,
        ],
    }[name]


@pytest.mark.parametrize("name", ["convert_from_hf", "generate", "inspect_data", "inspect_shards", "train_tokenizer"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_made(commands, inputs, tmp_path, name):
    with small_disk(tmp_path / "disk", 64 << 10) as (disk, hook):
        (disk / "ballast").write_bytes(b"x" * (60 << 10))
        done = commands.run(*arguments_of(name, inputs, disk / "out"), hook=hook)
        left = [path for path in disk.rglob("*") if path.is_file() and path.stat().st_size and path.name != "ballast"]
        for path in left:  # of several pictures the first may have had room
            assert path.suffix == ".png" and Image.open(path).load()
    assert_no_room(done, disk)


def test_a_full_disk_leaves_the_former_contact_sheet(commands, inputs, tmp_path):
    out = tmp_path / "out"
    assert commands.run(*arguments_of("generate", inputs, out)).code == 0
    sheet = (out / "contact_sheet.png").read_bytes()
    done = commands.run(*arguments_of("generate", inputs, out), hook=("tests.small_disk", "limit_files", 100))
    assert done.code == 1 and str(out) in done.err and (out / "contact_sheet.png").read_bytes() == sheet, done.err


@pytest.mark.parametrize("name", ["inspect_data", "inspect_shards", "new_run"])
def test_a_read_only_disk_is_one_line(commands, inputs, tmp_path, name):
    with read_only(tmp_path / "disk") as disk:
        done = commands.run(*arguments_of(name, inputs, disk / "out"))
    lines = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
    assert (done.code, len(lines)) == (1, 1), done.err
    assert lines[0].startswith(f"error: {disk}") and "choose a place that you may write to" in lines[0], done.err


def assert_no_room(done, disk: Path) -> None:
    lines = done.err.splitlines()
    assert (done.code, len(lines)) == (1, 1), done.err
    assert lines[0].startswith(f"error: {disk}") and "make room there" in lines[0], done.err
