"""Small image tokenizers for tests, and the folder of Meta's reference codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden" / "vqgan_a"
"""A random model in Meta's released format, with codes and pixels that the released code computed from it."""

TINY_DIFFUSERS = {
    "block_out_channels": [32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "sample_size": 16,
    "num_vq_embeddings": 32,
}
TINY_EMU3 = {
    "codebook_size": 64,
    "embed_dim": 4,
    "latent_channels": 4,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [1],
    "hidden_size": 64,
    "temporal_downsample_factor": 4,
}
TINY_JANUS = {
    "embed_dim": 8,
    "num_embeddings": 64,
    "latent_channels": 32,
    "num_patches": 8,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
}


def tiny_emu3() -> torch.nn.Module:
    """A random Emu3VQVAE in evaluation mode, the same at every call."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    torch.manual_seed(0)
    return Emu3VQVAE(Emu3VQVAEConfig(**TINY_EMU3)).eval()


def tiny_janus() -> torch.nn.Module:
    """A random JanusVQVAE in evaluation mode, the same at every call."""
    from transformers import JanusVQVAE, JanusVQVAEConfig

    torch.manual_seed(0)
    return JanusVQVAE(JanusVQVAEConfig(**TINY_JANUS)).eval()


def edited(folder: Path, target: Path, **changes) -> Path:
    """A copy of a model folder with other values in its config.json; a value of None removes the key."""
    shutil.copytree(folder, target)
    path = target / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return target
