"""Shards of another picture size than the image tokenizer's own: an export reads pictures at the size of the shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import CommandServer
from tests.pretrain.tiny_run import TinyData, write_config
from tools import generate
from tools.export.folder import open_export
from tools.generation.prompts import Request, codes_of

SIDE = 16  # half of the tiny image tokenizer's own


@pytest.fixture(scope="module")
def export(tmp_path_factory, commands: CommandServer, tiny_data: TinyData) -> Path:
    root = tmp_path_factory.mktemp("small")
    data = replace(tiny_data, train=root / "train", heldout=root / "heldout")
    words = ["--vq", data.vq, "--tokenizer", data.tokenizer, "--workers", 0, "--image-size", SIDE]
    for output in (data.train, data.heldout):
        pictures = data.corpus / output.name / "folder"
        done = commands.run("tokenization/shard_images.py", "--input", pictures, "--output", output, *words)
        assert done.code == 0, done.err
    config = write_config(data, root / "run")
    for script, *arguments in (
        ["pretrain/train.py", "--config", config, "run.steps=1"],
        ["tools/convert_to_hf.py", "--checkpoint", root / "run", "--output", root / "model"],
    ):
        done = commands.run(script, *arguments)
        assert done.code == 0, done.err
    return root / "model"


def test_its_processor_and_image_tokenizer_have_that_size(export: Path):
    assert json.loads((export / "vq" / "preprocess.json").read_text())["image_size"] == SIDE
    assert json.loads((export / "processor_config.json").read_text())["image_size"] == SIDE


@pytest.mark.parametrize("written", [SIDE, 32])
def test_commands_encode_pictures_at_that_size(export: Path, tmp_path: Path, written: int):
    """An export of an earlier release has the tokenizer's own size beside the grid of the shards."""
    preprocess = export / "vq" / "preprocess.json"
    kept = preprocess.read_text()
    preprocess.write_text(json.dumps(json.loads(kept) | {"image_size": written}))
    try:
        opened = open_export(export)
        Image.new("RGB", (50, 50), "red").save(tmp_path / "red.png")
        request = Request("", (tmp_path / "red.png",))
        assert opened.vq.image_size == SIDE and len(codes_of(opened, request)[0]) == opened.templates.grid[0] ** 2 == 4
        words = ["--model", str(export), "--image", str(tmp_path / "red.png"), "--output", str(tmp_path / "out")]
        assert generate.main(words) == 0
    finally:
        preprocess.write_text(kept)
