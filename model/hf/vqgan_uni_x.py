"""Chameleon's VQGAN in torch alone, so that an export encodes and decodes images without diffusers.

The architecture is that of taming-transformers (arXiv 2012.09841) as diffusers' VQModel has it, with diffusers' names and
the same operations in the same order: a folder that VQModel.save_pretrained wrote opens, and codes and pixels are equal
to the last bit. Imports torch and safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = "diffusion_pytorch_model.safetensors"
DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 3,
    "sample_size": 32,
    "num_vq_embeddings": 256,
    "norm_num_groups": 32,
    "vq_embed_dim": None,
    "scaling_factor": 0.18215,
    "norm_type": "group",
    "mid_block_add_attention": True,
    "lookup_from_codebook": False,
    "force_upcast": False,
}
"""VQModel's own, for keys that its config.json leaves out."""
ONLY = {"act_fn": "silu", "norm_type": "group"}
"""What is built here; the rest opens with diffusers."""
EPSILON = 1e-6


class ResnetBlock(nn.Module):
    """Residual block: two convolutions with norms before them, and a shortcut: [b, in, H, W] -> [b, out, H, W]."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=EPSILON)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=EPSILON)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(nn.functional.silu(self.norm1(x)))
        hidden = self.conv2(nn.functional.silu(self.norm2(hidden)))
        # after attention x is channels_last, in which convolutions and norms round differently: diffusers keeps it
        return (x if self.conv_shortcut is None else self.conv_shortcut(x.contiguous())) + hidden


class Attention(nn.Module):
    """Single-head self-attention over all positions of an image: [b, c, H, W] -> the same shape."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.group_norm(x.view(batch, channels, height * width)).transpose(1, 2)
        q, k, v = (project(tokens)[:, None] for project in (self.to_q, self.to_k, self.to_v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.to_out[0](attended).transpose(-1, -2).reshape(x.shape) + x


class MidBlock(nn.Module):
    """Middle of encoder and decoder: two ResnetBlocks, with an Attention between them if configured."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    """Halve height and width by a strided convolution: [b, c, H, W] -> [b, c, H / 2, W / 2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width, nearest neighbour and a convolution: [b, c, H, W] -> [b, c, 2 * H, 2 * W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Module):
    """One resolution level: ResnetBlocks, then down- or upsampling under the name that diffusers gives it."""

    def __init__(self, widths: list[tuple[int, int]], groups: int, resize: tuple[str, nn.Module] | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(*width, groups) for width in widths)
        self.resize = resize[0] if resize else ""
        if resize:
            self.add_module(resize[0], nn.ModuleList([resize[1]]))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return getattr(self, self.resize)[0](x) if self.resize else x


class Encoder(nn.Module):
    """Pixels [b, 3, H, W] -> latents [b, c, rows, columns]."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        for level in range(len(config.down_block_types)):
            width, last = widths[level], level == len(widths) - 1
            pairs = [(before if place == 0 else width, width) for place in range(config.layers_per_block)]
            self.down_blocks.append(Block(pairs, groups, None if last else ("downsamplers", Downsample(width))))
            before = width
        self.mid_block = MidBlock(widths[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents [b, c, rows, columns] -> pixels [b, 3, H, W]."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        widths, groups = list(reversed(config.block_out_channels)), config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
        before = widths[0]
        for level in range(len(config.up_block_types)):
            width, last = widths[level], level == len(widths) - 1
            pairs = [(before if place == 0 else width, width) for place in range(config.layers_per_block + 1)]
            self.up_blocks.append(Block(pairs, groups, None if last else ("upsamplers", Upsample(width))))
            before = width
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(x)))


class Codebook(nn.Module):
    """Embeddings of the codes."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)


class VQGAN(nn.Module):
    """The tokenizer of a folder that diffusers' VQModel wrote. `config` has the keys of its config.json."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        width = config.vq_embed_dim or config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, width, 1)
        self.quantize = Codebook(config.num_vq_embeddings, width)
        self.post_quant_conv = nn.Conv2d(width, config.latent_channels, 1)

    def codes(self, pixels: Tensor) -> Tensor:
        """Pixels float32 [b, 3, H, W] in -1..1 -> codes int64 [b, rows, columns]."""
        latents = self.quant_conv(self.encoder(pixels)).permute(0, 2, 3, 1).contiguous()
        places = torch.cdist(latents.view(-1, latents.shape[-1]), self.quantize.embedding.weight).argmin(1)
        return places.view(latents.shape[:3])

    def pixels(self, codes: Tensor) -> Tensor:
        """Codes int64 [b, rows, columns] -> pixels float32 [b, 3, H, W]."""
        latents = self.quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()
        return self.decoder(self.post_quant_conv(latents))


def open_vqgan(folder: str) -> VQGAN | None:
    """Load the tokenizer in `folder`, float32, in evaluation mode; None for one with parts that only diffusers has.

    Raises ValueError for weights that do not belong to the configuration.
    """
    values = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = SimpleNamespace(**{key: values.get(key, default) for key, default in DEFAULTS.items()})
    blocks = [*config.down_block_types, *config.up_block_types]
    levels = {len(config.down_block_types), len(config.up_block_types), len(config.block_out_channels)}
    known = all(getattr(config, key) == value for key, value in ONLY.items()) and len(levels) == 1
    weights = Path(folder) / WEIGHTS
    if not known or not set(blocks) <= {"DownEncoderBlock2D", "UpDecoderBlock2D"} or not weights.is_file():
        return None
    model = VQGAN(config)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    except RuntimeError as error:
        raise ValueError(
            f"{weights}: does not belong to its config.json: {' '.join(str(error).split())[:300]}"
        ) from error
    return model.eval().requires_grad_(False)
