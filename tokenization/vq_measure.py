"""Reconstructions of an image tokenizer in training: their quality, and a sheet to look at."""

from __future__ import annotations

import math
from pathlib import Path

SHEET_PICTURES = 24


def measure(model, pictures) -> dict:
    """Reconstruction quality of uint8 [n, 3, s, s]: PSNR in dB (of the mean error, and the mean over images) and the
    share of codes in use."""
    import torch

    errors, used = [], torch.zeros(model.config.num_vq_embeddings, dtype=torch.bool)
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for batch in pictures.split(128):
            batch = batch.to(device)
            latent = model.encode(batch.float() / 127.5 - 1).latents
            _, _, (_, _, codes) = model.quantize(latent)
            used[codes.flatten().cpu()] = True
            restored = ((model.decode(latent).sample.clamp(-1, 1) + 1) * 127.5).round()
            errors.append(((restored - batch.float()) / 255).square().mean((1, 2, 3)))
    model.train()
    squared = torch.cat(errors)
    return {
        "psnr": round(-10 * math.log10(squared.mean().item()), 2),
        "mean_psnr": round((-10 * squared.clamp_min(1e-10).log10()).mean().item(), 2),
        "codebook_used": round(used.float().mean().item(), 3),
        "pictures": len(pictures),
    }


def draw_reconstructions(model, pictures, path: Path) -> None:
    """Contact sheet of images uint8 [n, 3, s, s], each beside its reconstruction."""
    import torch

    from tokenization.contact_sheet import contact_sheet
    from tokenization.vq_base import images_of

    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        pixels = pictures[:SHEET_PICTURES].to(device).float() / 127.5 - 1
        restored = images_of(model.decode(model.encode(pixels).latents).sample)
    model.train()
    shown = [image for pair in zip(images_of(pixels), restored, strict=True) for image in pair]
    contact_sheet(shown, ["held out", "restored"] * len(restored), columns=8).save(path)
