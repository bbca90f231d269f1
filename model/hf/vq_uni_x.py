"""Image tokenizer families: pixels to codes and back. Imports torch, and the family's library.

Pixels are float32 [b, 3, H, W] in -1..1, codes int64 [b, rows, columns]; `model` is the library's own class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .vqgan_uni_x import VQGAN, open_vqgan


class TokenizerFamily(NamedTuple):
    """An image tokenizer family: encode, decode, and loading from a folder."""

    encode: Callable[[nn.Module, Tensor], Tensor]
    decode: Callable[[nn.Module, Tensor], Tensor]
    open: Callable[[str], nn.Module]


def encode_vqgan(model: Any, pixels: Tensor) -> Tensor:
    """Codes of Chameleon's VQGAN, which is diffusers' VQModel or the class in `vqgan_uni_x.py`."""
    if isinstance(model, VQGAN):
        return model.codes(pixels)
    latents = model.encode(pixels).latents
    _, _, (_, _, codes) = model.quantize(latents)
    return codes.view(latents.shape[0], *latents.shape[2:])


def decode_vqgan(model: Any, codes: Tensor) -> Tensor:
    """Pixels of Chameleon's VQGAN."""
    if isinstance(model, VQGAN):
        return model.pixels(codes)
    latents = model.quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()
    # VQModel.decode would quantize again or look codes up, by its config; this is the rest of it
    spatial = latents if model.config.norm_type == "spatial" else None
    return model.decoder(model.post_quant_conv(latents), spatial)


def encode_emu3(model: Any, pixels: Tensor) -> Tensor:
    """Codes of Emu3VQVAE, which treats an image as a short clip."""
    found = model.encode(pixels, [tuple(pixels.shape[2:])] * pixels.shape[0])
    return torch.stack(list(getattr(found, "image_tokens", found)))  # transformers 5 wraps the list that 4.57 returns


def decode_emu3(model: Any, codes: Tensor) -> Tensor:
    """Pixels of Emu3VQVAE."""
    return model.decode(codes)


def encode_janus(model: Any, pixels: Tensor) -> Tensor:
    """Codes of JanusVQVAE as in DeepSeek's release: nearest by cosine, unlike transformers 4.57."""
    latents = model.quant_conv(model.encoder(pixels)).permute(0, 2, 3, 1)
    directions = nn.functional.normalize(model.quantize.embedding.weight, dim=-1)
    # the nearest on the unit sphere has the largest cosine, whatever the length of the latent
    return (latents @ directions.T).argmax(-1)


def decode_janus(model: Any, codes: Tensor) -> Tensor:
    """Pixels of JanusVQVAE."""
    return model.decode(codes.flatten(1))


def open_vqmodel(folder: str) -> nn.Module:
    """Load Chameleon's VQGAN: the class in `vqgan_uni_x.py`, or diffusers' for parts that only it has."""
    model = open_vqgan(folder)
    if model is not None:
        return model
    try:
        from diffusers import VQModel
    except Exception as error:  # diffusers 0.35.2 imports every quantizer that is installed, and fails with some
        raise ImportError(
            f"{folder}/config.json asks for parts that only diffusers' VQModel has, and diffusers cannot be imported "
            f"({error}): install diffusers 0.35.2, and no torchao beside it"
        ) from error
    return VQModel.from_pretrained(folder)


def of_transformers(name: str) -> Callable[[str], nn.Module]:
    """Loader of a folder with a class of transformers, which is imported when it is used."""

    def open_folder(folder: str) -> nn.Module:
        import transformers

        return getattr(transformers, name).from_pretrained(folder)

    return open_folder


FAMILIES = {
    "VQModel": TokenizerFamily(encode_vqgan, decode_vqgan, open_vqmodel),
    "emu3_vqgan": TokenizerFamily(encode_emu3, decode_emu3, of_transformers("Emu3VQVAE")),
    "janus_vqgan": TokenizerFamily(encode_janus, decode_janus, of_transformers("JanusVQVAE")),
}
"""By the `_class_name` or `model_type` in the tokenizer's config.json."""


def open_picture_tokenizer(folder: str, kind: str) -> nn.Module:
    """Load the image tokenizer in `folder`, float32, in evaluation mode. Raises ValueError for an unknown kind."""
    if kind not in FAMILIES:
        raise ValueError(f"{folder}/config.json describes {kind!r}: image tokenizers are {list(FAMILIES)}")
    return FAMILIES[kind].open(folder).float().eval().requires_grad_(False)
