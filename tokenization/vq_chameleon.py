"""Chameleon's VQGAN as diffusers' VQModel, from Meta's released files or from a diffusers folder.

Chameleon (arXiv 2405.09818) took its image tokenizer from Make-A-Scene (arXiv 2203.13131), a VQGAN (arXiv 2012.09841)
of taming-transformers' layout. diffusers' VQModel is that architecture, encoder and decoder; the state dicts differ by
names only, and `RENAMES` is the table of the differences. Pixels enter as `uint8 / 127.5 - 1`, as in the original.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import UserError
from tokenization.vq_base import VQ, load_exactly

if TYPE_CHECKING:
    import torch

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


class ChameleonVQ(VQ):
    """A diffusers VQModel: Chameleon's own, or a smaller one of the same architecture."""

    family = "vqgan"

    def __init__(self, model: torch.nn.Module, *, name: str, image_size: int | None = None, device: str = "cpu"):
        super().__init__(
            model,
            name=name,
            codebook_size=model.config.num_vq_embeddings,
            downsample=2 ** (len(model.config.block_out_channels) - 1),
            image_size=image_size or model.config.sample_size,
            device=device,
        )

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        latents = self.model.quant_conv(self.model.encoder(pixels))
        _, _, (_, _, codes) = self.model.quantize(latents)
        return codes.view(latents.shape[0], *latents.shape[2:])

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        latents = self.model.quantize.embedding(codes).permute(0, 3, 1, 2)
        spatial = latents if self.model.config.norm_type == "spatial" else None
        return self.model.decoder(self.model.post_quant_conv(latents), spatial)

    def _architecture(self) -> dict[str, Any]:
        keys = ("act_fn", "norm_num_groups", "norm_type", "down_block_types", "up_block_types")
        return {key: self.model.config[key] for key in keys}


def load_diffusers(folder: Path, *, name: str, image_size: int | None, device: str) -> ChameleonVQ:
    """A diffusers VQModel folder. `image_size` None means the config's sample_size. UserError on what does not fit."""
    from safetensors.torch import load_file

    weights = folder / DIFFUSERS_WEIGHTS
    if not weights.is_file():
        raise UserError(f"{folder} has no {DIFFUSERS_WEIGHTS}; save the VQModel with save_pretrained")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = build(config, load_file(weights), weights)
    return ChameleonVQ(model, name=name, image_size=image_size, device=device)


def build(config: dict[str, Any], state: dict[str, torch.Tensor], source: Path) -> torch.nn.Module:
    """A VQModel of this diffusers config with exactly these weights; `source` is the file that an error names."""
    from model.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from diffusers import VQModel

    model = VQModel.from_config({key: value for key, value in config.items() if not key.startswith("_")})
    load_exactly(model, state, source)
    return model
