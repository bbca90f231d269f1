"""Invariant 2: the published Uni-X, run on random weights, gives the logits that ours gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from model.config import layer_kinds
from model.hf.configuration_uni_x import UniXConfig
from model.hf.modeling_uni_x import UniXForCausalLM
from model.weight_names_released import from_released
from pretrain.system.errors import UserError

REFERENCE = Path(__file__).parents[1] / "data" / "golden" / "reference_a.safetensors"
CASES = 4  # text + image + text, text, two images, image first


@pytest.fixture(scope="module")
def reference() -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(REFERENCE, framework="pt") as file:
        return json.loads(file.metadata()["config"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def model(reference) -> UniXForCausalLM:
    sizes, tensors = reference
    config = UniXConfig(
        hidden_size=sizes["H"],
        intermediate_size=sizes["I"],
        num_hidden_layers=sizes["L"],
        num_attention_heads=sizes["nh"],
        num_key_value_heads=sizes["nkv"],
        head_dim=sizes["hd"],
        vocab_size=sizes["V"] + sizes["C"],
        image_token_offset=sizes["vision_token_offset"],
        codebook_size=sizes["C"],
        vision_start_token_id=sizes["vision_start_id"],
        vision_end_token_id=sizes["vision_end_id"],
        eos_token_id=0,
        layer_kinds=layer_kinds(sizes["L"], sizes["enc"], sizes["dec"]),
        attention_bias=False,
        qk_norm=True,
        rope_theta=sizes["rope_theta"],
        rms_norm_eps=sizes["rms_norm_eps"],
        tie_word_embeddings=False,
    )
    model = UniXForCausalLM(config).eval()
    weights = {
        from_released(name.removeprefix("weights."), sizes["L"], sizes["dec"]): tensor
        for name, tensor in tensors.items()
        if name.startswith("weights.")
    }
    model.load_state_dict(weights, strict=True)
    return model


@pytest.mark.parametrize("case", range(CASES))
@torch.no_grad()
def test_published_logits_and_losses(reference, model, case):
    _, tensors = reference
    ids, expected = tensors[f"case{case}.input_ids"], tensors[f"case{case}.logits"]
    logits = model(ids[None]).logits[0]
    assert (logits - expected).abs().max() <= 2e-5
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    assert (loss - tensors[f"case{case}.token_loss"]).abs().max() <= 2e-5


@torch.no_grad()
def test_published_logits_in_one_padded_batch(reference, model):
    _, tensors = reference
    rows = [tensors[f"case{case}.input_ids"] for case in range(CASES)]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    logits = model(ids, attention_mask=mask).logits
    for case, row in enumerate(rows):
        assert (logits[case, -len(row) :] - tensors[f"case{case}.logits"]).abs().max() <= 2e-5


def test_names_of_published_vision_layers():
    assert from_released("model.vision_encode_layers.1.mlp.up_proj.weight", 6, 1) == (
        "model.vision_layers.1.mlp.up_proj.weight"
    )
    assert from_released("model.vision_decode_layers.0.self_attn.q_norm.weight", 6, 1) == (
        "model.vision_layers.5.self_attn.q_norm.weight"
    )
    assert from_released("model.layers.3.input_layernorm.weight", 6, 1) == "model.layers.3.input_layernorm.weight"
    with pytest.raises(UserError, match="num_vision_decode_layers"):
        from_released("model.vision_decode_layers.1.self_attn.q_norm.weight", 6, 1)
