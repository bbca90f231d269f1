"""Flat patches as an image tokenizer of code shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from model.hf.flat_patches_uni_x import FlatPatches, colours_of, patches_of

from tokenization.vq_base import VQ


class FlatPatchesVQ(VQ):
    """64 codes where there are four levels a channel."""

    family = "flat_patches"

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return patches_of(self.model, pixels)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return colours_of(self.model, codes)

    def _architecture(self) -> dict[str, Any]:
        return {"patch": self.model.patch}


def load_flat_patches(folder: Path, *, name: str, image_size: int | None, device: str) -> FlatPatchesVQ:
    """The tokenizer of a folder; 32 pixels a side where preprocess.json does not say."""
    model = FlatPatches.from_pretrained(str(folder))
    return FlatPatchesVQ(
        model,
        name=name,
        codebook_size=len(model.colours) ** 3,
        downsample=model.patch,
        image_size=image_size or 32,
        device=device,
    )
