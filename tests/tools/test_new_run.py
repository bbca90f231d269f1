"""Wrong use of new_run.py: one line, and no file that is not the configuration of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import CommandServer, assert_refused
from tests.pretrain.tiny_run import TinyData
from tests.tokenization.conftest import save_byte_tokenizer
from tests.tokenization.corpora import folder_corpus


@pytest.fixture(scope="module")
def sharded(commands: CommandServer, tiny_data: TinyData, tmp_path_factory) -> tuple[Path, Path]:
    """A dataset and its tokenizer, which lacks a special token that training needs."""
    folder = tmp_path_factory.mktemp("sharded")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    save_byte_tokenizer(tokenizer)
    words = ("--input", folder_corpus(folder / "corpus", 3), "--output", folder / "shards", "--workers", 0)
    done = commands.run("tokenization/shard_images.py", *words, "--vq", tiny_data.vq, "--tokenizer", tokenizer)
    assert done.code == 0, done.err
    return folder / "shards", tokenizer


def test_what_cannot_be_trained_leaves_no_file(commands, tiny_data, sharded, tmp_path):
    shards, tokenizer = sharded
    words = (
        "--tokenizer",
        tokenizer,
        "--vq",
        tiny_data.vq,
        "--folder",
        tmp_path / "run",
        "--output",
        tmp_path / "run.yaml",
    )
    for _ in range(2):
        done = commands.run("tools/new_run.py", "--shards", shards, *words)
        assert_refused(done, "the tokenizer has none of <|vision_end|>")
    for value in ("nan", "inf", "1e30", "-1"):
        done = commands.run("tools/new_run.py", "--shards", shards, "--epochs", value, *words)
        assert done.code == 2 and "--epochs must be below 1,000,000" in done.err.splitlines()[-1]
    done = commands.run("tools/new_run.py", "--shards", shards, f"{shards}/../shards", *words)
    assert done.code == 2 and f"--shards {shards} is given twice" in done.err.splitlines()[-1]
    for folder in (shards, shards / "manifest.json"):
        done = commands.run("tools/new_run.py", "--shards", shards, *words, "--folder", folder)
        assert_refused(done, f"--folder {folder}: is a file, or holds shards")
    assert not (tmp_path / "run.yaml").exists()
