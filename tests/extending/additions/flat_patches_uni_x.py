"""An image tokenizer without weights to learn: the mean colour of a patch, in a few levels a channel."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn


class FlatPatches(nn.Module):
    """Code = red * levels ** 2 + green * levels + blue, each 0 to levels - 1."""

    def __init__(self, levels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.colours = nn.Parameter(torch.linspace(-1, 1, levels))

    @classmethod
    def from_pretrained(cls, folder: str) -> FlatPatches:
        """The folder that `save_pretrained` wrote."""
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        return cls(config["levels"], config["patch"])

    def save_pretrained(self, folder: str | Path, **_) -> None:
        """config.json is all that there is."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = {"model_type": "flat_patches", "levels": len(self.colours), "patch": self.patch}
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")


def patches_of(model: FlatPatches, pixels: Tensor) -> Tensor:
    """Pixels float32 [b, 3, H, W] in -1..1 -> codes int64 [b, H / patch, W / patch]."""
    levels = len(model.colours)
    means = nn.functional.avg_pool2d(pixels, model.patch)
    red, green, blue = ((means + 1) / 2 * levels).long().clamp(0, levels - 1).unbind(1)
    return (red * levels + green) * levels + blue


def colours_of(model: FlatPatches, codes: Tensor) -> Tensor:
    """Codes -> pixels, each patch of one colour."""
    levels = len(model.colours)
    channels = torch.stack((codes // levels**2, codes // levels % levels, codes % levels), dim=1)
    return model.colours[channels].repeat_interleave(model.patch, 2).repeat_interleave(model.patch, 3)
