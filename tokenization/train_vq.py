#!/usr/bin/env python
"""Train a small image tokenizer of Chameleon's architecture (a VQGAN without the GAN) on a corpus of images.

The network is diffusers' `VQModel`. Training has two phases: a plain autoencoder for the first steps, so that the
codebook can start from real encoder outputs, then vector quantisation with a codebook that follows a moving average of
the outputs assigned to each code (van den Oord et al., arXiv 1711.00937, appendix A.1). Codes that nothing uses are put
back on random encoder outputs, which keeps the whole codebook alive.

Inputs are a folder with pictures anywhere below it, or whatever shard_images.py reads. What does not fit into --memory is
trained on a stretch after the other. Beside the weights lies reconstructions.png: held-out pictures, and what is left of
them. docs/data.md says more.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pretrain.system.errors import RunFailed, UserError, run_command
from pretrain.system.light_compiler import uncompiled
from tokenization.files import check_outside, files_for, output_folder
from tokenization.vq_arguments import GROUPS, capacity_of, parse_arguments
from tokenization.vq_augment import augment
from tokenization.vq_measure import draw_reconstructions, measure

if TYPE_CHECKING:
    from tokenization.vq_pictures import PictureBuffer

RESTART_BELOW = 0.1  # a code used fewer times per step than this, on average, is dead
CHECK_EVERY = 250  # steps between two evaluations on held-out pictures
LINE_SECONDS = 10.0  # seconds between two progress lines
HELDOUT_SHARE, MOST_HELDOUT = 0.05, 2000  # without --heldout: this share of the pictures in memory, at most so many


def build_model(arguments: argparse.Namespace):
    """diffusers' VQModel with Chameleon's blocks: one ResNet block per level, attention in the middle only; or that of
    --start."""
    import torch

    from pretrain.system.light_imports import vq_model

    VQModel = vq_model()
    if arguments.start:
        try:
            return VQModel.from_pretrained(arguments.start, torch_dtype=torch.float32, low_cpu_mem_usage=False)
        except (OSError, ValueError) as error:
            raise UserError(f"--start {arguments.start}: cannot be read ({str(error).splitlines()[0][:200]})") from None
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
        norm_num_groups=GROUPS,
        sample_size=arguments.image_size,
        mid_block_add_attention=True,
    )


class MovingCodebook:
    """Codebook with exponential moving average updates: `weight` [codes, channels] is the model's own tensor, updated
    in place."""

    def __init__(self, weight, decay: float = 0.99):
        import torch

        self.weight, self.decay = weight, decay
        self.counts = torch.ones(len(weight), device=weight.device)
        self.sums = weight.detach().clone()

    def start_from(self, vectors, generator) -> None:
        """Initialize every code with one of the encoder outputs `vectors` [n, channels]."""
        import torch

        chosen = vectors[torch.randint(len(vectors), (len(self.weight),), generator=generator).to(vectors.device)]
        self.weight.data.copy_(chosen)
        self.counts.fill_(1.0)
        self.sums.copy_(chosen)

    def assign(self, vectors):
        """Nearest code of each vector: [n, channels] -> int64 [n]."""
        distances = self.weight.square().sum(1) - 2 * vectors @ self.weight.t()
        return distances.argmin(1)

    def update(self, vectors, codes, generator) -> None:
        """Move codes towards the outputs assigned to them, and restart dead codes."""
        import torch

        size = len(self.weight)
        counts = torch.bincount(codes, minlength=size).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        dead = (self.counts < RESTART_BELOW).nonzero().flatten()
        if len(dead):
            fresh = vectors[torch.randint(len(vectors), (len(dead),), generator=generator).to(vectors.device)]
            self.counts[dead] = 1.0
            self.sums[dead] = fresh
        self.weight.data.copy_(self.sums / self.counts[:, None])


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Linear warm-up over 200 steps, then a cosine to 2 % of the peak."""
    if step < 200:
        return arguments.lr * (step + 1) / 200
    progress = (step - 200) / max(1, arguments.steps - 200)
    return arguments.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def has_bf16(device: str) -> bool:
    """Whether a device has fast bf16: a CPU without the instructions takes ten times as long as in fp32."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def train_step(model, codebook, pictures, quantise: bool, generator, bf16: bool = False):
    """Forward pass -> loss tensor. `pictures` [b, 3, s, s] in -1..1; updates the codebook."""
    import torch

    kind = pictures.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=bf16):
        latent = model.quant_conv(model.encoder(pictures)).float()  # [b, channels, h, w]
    commitment = latent.new_zeros(())
    if quantise:
        vectors = latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])
        codes = codebook.assign(vectors.detach())
        chosen = codebook.weight.detach()[codes].reshape(latent.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        codebook.update(vectors.detach(), codes, generator)
        commitment = torch.nn.functional.mse_loss(latent, chosen)
        latent = latent + (chosen - latent).detach()  # straight-through estimator
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=bf16):
        restored = model.decoder(model.post_quant_conv(latent)).float()
    error = restored - pictures
    return error.square().mean() + 0.1 * error.abs().mean() + 0.25 * commitment


def save(model, arguments: argparse.Namespace, record: dict) -> None:
    """Write the diffusers folder in half precision, with the preprocessing and the measurements."""
    import copy

    import torch

    with files_for(arguments.output) as temporary:
        copy.deepcopy(model).to(torch.float16).save_pretrained(temporary)
        (temporary / "preprocess.json").write_text(json.dumps({"image_size": arguments.image_size}) + "\n")
        (temporary / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def check_unused(arguments: argparse.Namespace) -> None:
    """Raises UserError if --output holds other weights: the shards that they made can be decoded by nothing else."""
    output, start = arguments.output, arguments.start
    if (output / "config.json").exists() and not (start and start.resolve() == output.resolve()):
        raise UserError(
            f"{output}: holds an image tokenizer already, and shards that it made need it: give another --output, or --start "
            f"{output} to train it further"
        )


def check_finite(loss: float, step: int, arguments: argparse.Namespace) -> float:
    """The loss. Raises RunFailed if it is no number: every later step would have none."""
    if not math.isfinite(loss):
        raise RunFailed(f"the loss of step {step} is {loss}: begin again with a lower --lr than {arguments.lr:g}")
    return loss


def check_apart(train: Sequence[str], heldout: Sequence[str]) -> None:
    """Raises UserError for held-out pictures that are trained on: an input given for both, or one in a folder whose pictures are
    read at any depth."""
    from tokenization.vq_pictures import lies_in

    for apart in heldout:
        for learned in train:
            if lies_in(apart, learned) or lies_in(learned, apart):
                raise UserError(
                    f"--heldout {apart}: its pictures are among those of --train {learned}, and would be measured on after they were "
                    "learned: give other folders, or leave it out"
                )


def heldout_of(arguments: argparse.Namespace, buffers: dict[str, PictureBuffer]):
    """(held-out images uint8 [n, 3, s, s], places of the others in `train`): those of --heldout, which become a buffer of their
    own, or a share. Raises UserError where neither is there."""
    import torch

    from tokenization.vq_pictures import PictureBuffer

    buffer = buffers["train"]
    usable = torch.arange(len(buffer.small))
    if arguments.heldout:
        buffers["heldout"] = PictureBuffer(arguments.heldout, arguments.image_size, MOST_HELDOUT)
        return buffers["heldout"].small, usable
    if not buffer.is_whole:
        raise UserError("--train has more pictures than --memory holds: name held-out ones with --heldout")
    every = max(round(1 / HELDOUT_SHARE), -(-len(usable) // MOST_HELDOUT))
    return buffer.small[::every], usable[usable % every != 0]


def main() -> int:
    """Train, evaluate on held-out images, save."""
    arguments = parse_arguments(__doc__ or "")
    from pretrain.system.threads import settle_threads

    threads = settle_threads(arguments.threads)
    import torch

    from pretrain.system.cpu_memory import keep_freed_memory
    from tokenization.job import locked
    from tokenization.vq_pictures import PictureBuffer, counts_left_out, say_left_out

    keep_freed_memory()
    threads.use()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = has_bf16(device) if arguments.precision == "auto" else arguments.precision == "bf16"
    drawings, size = arguments.augment == "drawings", arguments.image_size
    check_outside(arguments.output, [*arguments.train, *(arguments.heldout or [])])
    check_apart(arguments.train, arguments.heldout or [])
    check_unused(arguments)
    buffer = PictureBuffer(arguments.train, size, capacity_of(arguments), drawings)
    buffers = {"train": buffer}
    heldout, usable = heldout_of(arguments, buffers)
    if len(usable) < arguments.batch_size:
        raise UserError(
            f"{len(usable)} training pictures are fewer than --batch-size {arguments.batch_size}: give a smaller one, or more pictures"
        )
    output_folder(arguments.output)  # now, not after hours of training
    lock = ExitStack()
    lock.enter_context(locked(arguments.output, alone=True))  # two trainings would mix their files
    try:
        model = build_model(arguments).to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None
    model.quantize.embedding.weight.requires_grad_(False)  # updated by the moving average, not by the optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with uncompiled():
        optimizer = torch.optim.AdamW(trained, lr=arguments.lr, betas=(0.9, 0.95), weight_decay=1e-3)
    codebook = MovingCodebook(model.quantize.embedding.weight)
    generator = torch.Generator().manual_seed(arguments.seed)
    rest = "" if buffer.is_whole else " at a time, and there are more"
    print(
        f"{len(usable):,} training pictures{rest}, {len(heldout):,} held out, {buffer.rejected.counts.total():,} "
        f"left out; {parameters / 1e6:.2f} M parameters, {device} in {'bf16' if bf16 else 'fp32'}",
        flush=True,
    )
    told = say_left_out(buffers)
    started, step, saved = time.time(), 0, 0
    last_line = started
    order = usable[torch.randperm(len(usable), generator=generator)]
    try:
        for step in range(arguments.steps):
            if len(order) < arguments.batch_size:
                if not buffer.is_whole:
                    buffer.refill()
                    usable = torch.arange(len(buffer.small))
                order = usable[torch.randperm(len(usable), generator=generator)]
            batch, order = order[: arguments.batch_size], order[arguments.batch_size :]
            pictures = buffer.small[batch].float() / 127.5 - 1
            if drawings:
                pictures = augment(pictures, buffer.large[batch].float() / 127.5 - 1, generator)
            elif arguments.augment == "mirror":
                mirrored = torch.rand(len(pictures), generator=generator) < 0.5
                pictures = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
            pictures = pictures.to(device)
            if step == arguments.warmup_steps and not arguments.start:
                with torch.no_grad():
                    latent = model.quant_conv(model.encoder(pictures))
                codebook.start_from(latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1]), generator)
            quantise = bool(arguments.start) or step >= arguments.warmup_steps
            loss = train_step(model, codebook, pictures, quantise, generator, bf16)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, arguments)
            for parameter in trained:
                parameter.grad = None
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            with uncompiled():
                optimizer.step()
            if time.time() - last_line >= LINE_SECONDS or not step:
                last_line = time.time()
                value = check_finite(loss.item(), step + 1, arguments)
                left = (last_line - started) / (step + 1) * (arguments.steps - step - 1)
                print(f"step {step + 1}/{arguments.steps}  loss {value:.4f}  {left:.0f} s left", flush=True)
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == arguments.steps:
                value = check_finite(loss.item(), step + 1, arguments)
                figures = measure(model, heldout)
                if quantise:
                    save(model, arguments, {"step": step + 1, "heldout": figures})  # leftovers of a killed run
                    saved = step + 1
                print(
                    f"step {step + 1}/{arguments.steps}  loss {value:.4f}  held-out PSNR {figures['psnr']:.2f} dB  "
                    f"codes used {figures['codebook_used']:.0%}  {time.time() - started:.0f} s",
                    flush=True,
                )
    except KeyboardInterrupt:
        there = f"{arguments.output} is that of step {saved}, --start {arguments.output} goes on from it"
        print(
            f"stopped in step {step + 1} of {arguments.steps}: {there if saved else 'nothing is saved yet'}", flush=True
        )
        raise
    say_left_out(buffers, told)  # of what --memory did not hold at first
    record = {
        "command": "python " + " ".join(sys.argv),
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()},
        "parameters": parameters,
        "left_out": counts_left_out(buffers),
        "minutes": round((time.time() - started) / 60, 1),
        "heldout": measure(model.to(torch.float16).to(torch.float32), heldout),
        "train": measure(model, buffer.small[usable[:1024]]),
    }
    save(model, arguments, record)
    draw_reconstructions(model, heldout, arguments.output / "reconstructions.png")
    print(json.dumps(record["heldout"]))
    return 0


if __name__ == "__main__":
    run_command(main)
