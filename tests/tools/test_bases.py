"""Folders of each family as each version of transformers saves them: the text path keeps its logits, or one line says why not."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model.config import ModelConfig
from model.errors import UserError
from model.families import FAMILIES
from pretrain.samples import hugging_face_model
from pretrain.sharded_files import read_whole, stored_tensors
from tests.model.base_configs import CLASSES, TINY, written_by_5
from tests.model.tiny_hf import randomise
from tests.tools.tiny_export import write_tokenizer
from tools.convert_from_hf import convert

CODES = 64
IDS = torch.randint(0, 250, (2, 60), generator=torch.Generator().manual_seed(7))


def write_base(folder: Path, kind: str, **changes) -> torch.nn.Module:
    """A folder as 4.57.6 saves it, with random weights -> transformers' model."""
    model = randomise(AutoModelForCausalLM.from_config(CLASSES[kind](**{**TINY, "rope_theta": 1e6, **changes})), seed=5)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def as_5_saves(folder: Path) -> None:
    """Write its config.json anew, as 5.24.0 does; weights are stored alike."""
    path = folder / "config.json"
    path.write_text(json.dumps(written_by_5(json.loads(path.read_text())), indent=2))


def converted(folder: Path, output: Path, **changes) -> tuple[ModelConfig, torch.nn.Module]:
    """The checkpoint that tools/convert_from_hf.py makes -> its configuration, and the exported model of its weights."""
    values = {
        "hf": folder, "output": output, "separate": None, "every": 0, "kind": "separated", "vision_init": "copy",
        "new_rows": "mean", "codebook_size": CODES, "image_token_offset": 0, "tokenizer": None, "dtype": "keep", "seed": 0,
    }  # fmt: skip
    convert(argparse.Namespace(**{**values, **changes}))
    config = ModelConfig.from_dict(json.loads((output / "model.json").read_text()))
    return config, hugging_face_model(config, read_whole(output, stored_tensors(output)))


@pytest.mark.parametrize("saved_by", ["4.57.6", "5.24.0"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind in FAMILIES])
@torch.no_grad()
def test_the_text_path_is_the_base(kind, tied, saved_by, tmp_path):
    """A line of the table in docs/starting-from-a-language-model.md."""
    base = write_base(tmp_path / "base", kind, tie_word_embeddings=tied)
    if saved_by == "5.24.0":
        as_5_saves(tmp_path / "base")
    config, model = converted(tmp_path / "base", tmp_path / "start", separate=(1, 2))
    assert (config.rope_theta, config.max_position_embeddings, config.tie_word_embeddings) == (1e6, 256, tied)
    difference = (model(IDS).logits[..., : TINY["vocab_size"]] - base(IDS).logits).abs().max()
    assert difference <= 1e-5


def test_a_stale_index_beside_sound_weights_is_refused(tmp_path):
    """transformers takes model.safetensors; an index's files were trained on here."""
    base = write_base(tmp_path / "base", "qwen2")
    write_base(tmp_path / "other", "qwen2", initializer_range=0.5).save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    for path in (tmp_path / "cut").glob("model*"):
        path.rename(tmp_path / "base" / path.name)
    with pytest.raises(UserError, match="remove the stale one"):
        converted(tmp_path / "base", tmp_path / "start")
    (tmp_path / "base" / "model.safetensors.index.json").unlink()
    _, model = converted(tmp_path / "base", tmp_path / "start")
    assert torch.equal(model.state_dict()["model.norm.weight"], base.state_dict()["model.norm.weight"])
