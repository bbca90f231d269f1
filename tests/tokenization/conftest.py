"""A tiny image tokenizer and a byte tokenizer, as the folders that users pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tokenization.corpora import Command
from tests.tokenization.vq_folders import TINY_DIFFUSERS


@pytest.fixture(scope="session")
def vq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VQModel for 16 x 16 pixels: 8 x 8 codes of 32."""
    return save_vq(tmp_path_factory.mktemp("vq"), seed=0)


@pytest.fixture(scope="session")
def other_vq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return save_vq(tmp_path_factory.mktemp("other-vq"), seed=1)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with one id per byte and the special token <|vision_start|>."""
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def command(vq_folder: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """shard_images, as a test calls it."""
    return Command(vq_folder, tokenizer_folder, capsys)


def save_vq(folder: Path, seed: int) -> Path:
    from diffusers import VQModel

    torch.manual_seed(seed)
    model = VQModel(**TINY_DIFFUSERS)
    torch.nn.init.normal_(model.quantize.embedding.weight)  # so that pictures use many codes
    model.save_pretrained(folder)
    (folder / "preprocess.json").write_text(json.dumps({"image_size": 16, "name": f"tiny-{seed}"}))
    return folder


def save_byte_tokenizer(folder: Path) -> Path:
    """A tokenizer with one id per byte and the special token <|vision_start|>."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|vision_start|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
