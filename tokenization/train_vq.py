#!/usr/bin/env python
"""Train a small image tokenizer of Chameleon's architecture (a VQGAN without the GAN) on a picture folder.

The network is diffusers' `VQModel`. Training has two phases: a plain autoencoder for the first steps, so that the
codebook can start from real encoder outputs, then vector quantisation with a codebook that follows a moving average of
the outputs assigned to each code (van den Oord et al., arXiv 1711.00937, appendix A.1). Codes that nothing uses are put
back on random encoder outputs, which keeps the whole codebook alive.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import math
import time

from model.errors import UserError, run_command

RESTART_BELOW = 0.1  # a code used fewer times than this in a step, on average, is dead
CHECK_EVERY = 250  # steps between two figures on held-out pictures


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tokenization/train_vq.py --train work/corpus/train/folder "
        "--heldout work/corpus/heldout/folder --output work/vq --steps 4000",
    )
    parser.add_argument("--train", type=Path, required=True, help="folder whose images/ hold the training pictures")
    parser.add_argument("--heldout", type=Path, required=True, help="folder whose images/ are only measured on")
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights (diffusers format)")
    parser.add_argument("--start", type=Path, help="folder of an earlier run, whose weights are trained further")
    parser.add_argument("--image-size", type=int, default=64, help="picture side in pixels (default: 64)")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 96, 160], help="width of each level")
    parser.add_argument("--codebook-size", type=int, default=1024, help="number of codes (default: 1024)")
    parser.add_argument("--code-channels", type=int, default=16, help="length of a code vector (default: 16)")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps (default: 4000)")
    parser.add_argument("--warmup-steps", type=int, default=300, help="steps without quantisation (default: 300)")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures in a step (default: 64)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: 1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default: 0)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0: all cores)")
    return parser.parse_args()


def load_pictures(folder: Path, size: int):
    """Every picture under `folder`/images in name order -> uint8 tensor [n, 3, size, size]."""
    import numpy
    import torch

    from tokenization.preprocess import open_image, preprocess

    paths = sorted((folder / "images").glob("*.png"))
    if not paths:
        raise UserError(f"{folder}/images has no .png files: build a corpus with tokenization/demo_corpus.py first")
    pictures = numpy.stack([numpy.asarray(preprocess(open_image(path), size)) for path in paths])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def augment(small, large, generator):
    """Pictures at their size [b, 3, s, s] and at twice it [b, 3, 2s, 2s], in -1..1 -> [b, 3, s, s].

    A few thousand pictures are soon known by heart, and held-out ones suffer for it. So two thirds are turned, scaled,
    mirrored and moved over white, half have their colours swapped, and a fifth get a rectangle of another picture.
    """
    import torch
    from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

    batch, _, size, _ = small.shape

    def chance(share: float):
        return (torch.rand(batch, generator=generator) < share)[:, None, None, None]

    def between(low: float, high: float):
        return low + (high - low) * torch.rand(batch, generator=generator)

    small = torch.where(chance(0.5), small.flip(3), small)
    quarter_turns = torch.randint(0, 4, (batch,), generator=generator) * (torch.rand(batch, generator=generator) < 0.3)
    angle = quarter_turns * (math.pi / 2) + 0.2 * torch.randn(batch, generator=generator)
    scale, mirror = between(-0.25, 0.3).exp(), (between(-1, 1).sign())
    rotation = torch.stack([angle.cos() * mirror, -angle.sin(), angle.sin() * mirror, angle.cos()], 1).view(-1, 2, 2)
    shift = torch.stack([between(-0.2, 0.2), between(-0.2, 0.2)], 1)[:, :, None]
    transform = torch.cat([rotation * scale[:, None, None], shift], dim=2)
    moved = grid_sample(large - 1, affine_grid(transform, list(large.shape), align_corners=False), align_corners=False)
    pictures = torch.where(chance(0.67), avg_pool2d(moved + 1, 2), small)  # beyond the edge the sample is 0, so white
    swapped = torch.stack([picture[torch.randperm(3, generator=generator)] for picture in pictures])
    pictures = torch.where(chance(0.5), swapped, pictures)
    y, x = torch.arange(size)[:, None], torch.arange(size)[None, :]
    left, top, width, height = (between(0, size)[:, None, None] for _ in range(4))
    inside = (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
    return torch.where(chance(0.2) & inside[:, None], pictures.roll(1, 0), pictures)


def build_model(arguments: argparse.Namespace):
    """diffusers' VQModel with Chameleon's blocks: one resnet a level, attention in the middle only; or that of --start."""
    import torch

    from model.light_imports import vq_model

    VQModel = vq_model()
    if arguments.start:
        return VQModel.from_pretrained(arguments.start, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    torch.manual_seed(arguments.seed)
    levels = len(arguments.channels)
    return VQModel(
        block_out_channels=tuple(arguments.channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=64,
        num_vq_embeddings=arguments.codebook_size,
        vq_embed_dim=arguments.code_channels,
        norm_num_groups=16,
        sample_size=arguments.image_size,
        mid_block_add_attention=True,
    )


class MovingCodebook:
    """The codebook as a moving average: `weight` [codes, channels] is the model's own tensor, updated in place."""

    def __init__(self, weight, decay: float = 0.99):
        import torch

        self.weight, self.decay = weight, decay
        self.counts = torch.ones(len(weight))
        self.sums = weight.detach().clone()

    def start_from(self, vectors, generator) -> None:
        """Put every code on one of the encoder outputs `vectors` [n, channels]."""
        import torch

        chosen = vectors[torch.randint(len(vectors), (len(self.weight),), generator=generator)]
        self.weight.data.copy_(chosen)
        self.counts.fill_(1.0)
        self.sums.copy_(chosen)

    def assign(self, vectors):
        """[n, channels] -> nearest code of each, int64 [n]."""
        distances = self.weight.square().sum(1) - 2 * vectors @ self.weight.t()
        return distances.argmin(1)

    def update(self, vectors, codes, generator) -> None:
        """Move the codes towards the outputs assigned to them, and restart the dead ones."""
        import torch

        size = len(self.weight)
        counts = torch.bincount(codes, minlength=size).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        dead = (self.counts < RESTART_BELOW).nonzero().flatten()
        if len(dead):
            fresh = vectors[torch.randint(len(vectors), (len(dead),), generator=generator)]
            self.counts[dead] = 1.0
            self.sums[dead] = fresh
        self.weight.data.copy_(self.sums / self.counts[:, None])


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Linear warm-up over 200 steps, then a cosine to 2 % of the peak."""
    if step < 200:
        return arguments.lr * (step + 1) / 200
    progress = (step - 200) / max(1, arguments.steps - 200)
    return arguments.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_step(model, codebook, pictures, quantise: bool, generator):
    """One forward pass -> loss tensor. `pictures` [b, 3, s, s] in -1..1; the codebook is updated on the way."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        latent = model.quant_conv(model.encoder(pictures)).float()  # [b, channels, h, w]
    commitment = latent.new_zeros(())
    if quantise:
        vectors = latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
        codes = codebook.assign(vectors.detach())
        chosen = codebook.weight.detach()[codes].reshape(latent.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        codebook.update(vectors.detach(), codes, generator)
        commitment = torch.nn.functional.mse_loss(latent, chosen)
        latent = latent + (chosen - latent).detach()  # straight-through estimator
    with torch.autocast("cpu", dtype=torch.bfloat16):
        restored = model.decoder(model.post_quant_conv(latent)).float()
    error = restored - pictures
    return error.square().mean() + 0.1 * error.abs().mean() + 0.25 * commitment


def measure(model, pictures) -> dict:
    """uint8 [n, 3, s, s] -> PSNR in dB (of the mean error, and the mean over pictures) and the share of codes in use."""
    import torch

    errors, used = [], torch.zeros(model.config.num_vq_embeddings, dtype=torch.bool)
    model.eval()
    with torch.no_grad():
        for batch in pictures.split(128):
            latent = model.encode(batch.float() / 127.5 - 1).latents
            _, _, (_, _, codes) = model.quantize(latent)
            used[codes.flatten()] = True
            restored = ((model.decode(latent).sample.clamp(-1, 1) + 1) * 127.5).round()
            errors.append(((restored - batch.float()) / 255).square().mean((1, 2, 3)))
    model.train()
    errors = torch.cat(errors)
    return {
        "psnr": round(-10 * math.log10(errors.mean().item()), 2),
        "mean_psnr": round((-10 * errors.clamp_min(1e-10).log10()).mean().item(), 2),
        "codebook_used": round(used.float().mean().item(), 3),
        "pictures": len(pictures),
    }


def save(model, arguments: argparse.Namespace, record: dict) -> None:
    """Write the diffusers folder in half precision (half the bytes), with the preprocessing and the figures beside it."""
    import copy

    import torch

    arguments.output.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(arguments.output)
    (arguments.output / "preprocess.json").write_text(json.dumps({"image_size": arguments.image_size}) + "\n")
    (arguments.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> int:
    """Train, measure on held-out pictures, save."""
    arguments = parse_arguments()
    import torch

    from model.cpu_memory import keep_freed_memory

    keep_freed_memory()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    train, heldout = (load_pictures(folder, arguments.image_size) for folder in (arguments.train, arguments.heldout))
    train_large = load_pictures(arguments.train, 2 * arguments.image_size)
    model = build_model(arguments)
    model.quantize.embedding.weight.requires_grad_(False)  # the moving average owns it
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=arguments.lr, betas=(0.9, 0.95), weight_decay=1e-3)
    codebook = MovingCodebook(model.quantize.embedding.weight)
    generator = torch.Generator().manual_seed(arguments.seed)
    print(f"{len(train)} training and {len(heldout)} held-out pictures, {parameters / 1e6:.2f} M parameters", flush=True)
    started, order = time.time(), torch.randperm(len(train), generator=generator)
    for step in range(arguments.steps):
        if len(order) < arguments.batch_size:
            order = torch.randperm(len(train), generator=generator)
        batch, order = order[: arguments.batch_size], order[arguments.batch_size :]
        pictures = augment(train[batch].float() / 127.5 - 1, train_large[batch].float() / 127.5 - 1, generator)
        if step == arguments.warmup_steps and not arguments.start:
            with torch.no_grad():
                latent = model.quant_conv(model.encoder(pictures))
            codebook.start_from(latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1]), generator)
        quantise = bool(arguments.start) or step >= arguments.warmup_steps
        loss = train_step(model, codebook, pictures, quantise, generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == arguments.steps:
            figures = measure(model, heldout)
            save(model, arguments, {"step": step + 1, "heldout": figures})  # what a killed run leaves behind
            print(f"step {step + 1}/{arguments.steps}  loss {loss.item():.4f}  held-out PSNR {figures['psnr']:.2f} dB  "
                  f"codes used {figures['codebook_used']:.0%}  {time.time() - started:.0f} s", flush=True)  # fmt: skip
    record = {
        "command": "python " + " ".join(sys.argv),
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()},
        "parameters": parameters,
        "minutes": round((time.time() - started) / 60, 1),
        "heldout": measure(model.to(torch.float16).to(torch.float32), heldout),
        "train": measure(model, train[:1024]),
    }
    save(model, arguments, record)
    print(json.dumps(record["heldout"]))
    return 0


if __name__ == "__main__":
    run_command(main)
