"""Tiny Hugging Face models with random weights, and documents of text and pictures for them."""

from __future__ import annotations

import torch

from model.hf.configuration_uni_x import UniXConfig
from model.hf.modeling_uni_x import UniXForCausalLM

TEXT_IDS, CODES = 90, 32  # text ids 0..89, codes 90..121
START, END, EOS = 80, 81, 82
KINDS = ("separated", "shared", "shared", "separated")
QWEN25 = {"attention_bias": True, "qk_norm": False}
QWEN3 = {"attention_bias": False, "qk_norm": True}


def tiny_config(**changes) -> UniXConfig:
    values = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": len(changes.get("layer_kinds", KINDS)),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": TEXT_IDS + CODES,
        "image_token_offset": TEXT_IDS,
        "codebook_size": CODES,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "eos_token_id": EOS,
        "layer_kinds": KINDS,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 256,
        "pad_token_id": EOS,
    }
    return UniXConfig(**{**values, **changes})


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random values for every parameter: norms away from 1, and biases away from 0, where a fault would hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    return model.eval()


def tiny_model(seed: int = 0, **changes) -> UniXForCausalLM:
    return randomise(UniXForCausalLM(tiny_config(**changes)), seed)


def text(length: int, generator: torch.Generator) -> list[int]:
    return torch.randint(0, START, (length,), generator=generator).tolist()


def picture(length: int, generator: torch.Generator) -> list[int]:
    codes = torch.randint(TEXT_IDS, TEXT_IDS + CODES, (length,), generator=generator).tolist()
    return [START, *codes, END]


def document(lengths: list[int], seed: int = 0) -> list[int]:
    """Ids of text and pictures in turn: lengths[0] of text, a picture of lengths[1] codes, and so on."""
    generator = torch.Generator().manual_seed(seed)
    parts = [picture(n, generator) if index % 2 else text(n, generator) for index, n in enumerate(lengths)]
    return [token for part in parts for token in part]


def left_pad(rows: list[list[int]], pad: int = EOS) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids -> ids and attention mask, each [b, s], padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
