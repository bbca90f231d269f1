"""Batched encoding of small images on a CPU, with the same codes as one at a time.

A convolution over one small image is too little work for a kernel; a batch takes half the CPU time at 64 px. But batched
latents are rounded differently, and a latent on the boundary between two codes may change its code. So after each batch those
images are encoded again alone in which a change of a latent by `bound` could change a code. The bound is eight times the
change by rounding, measured on a few synthetic images of the same size; each image that is encoded again checks it, and a
batch whose latents changed by more than half of it is checked again with a larger bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from tokenization.one_thread import one_thread_each

if TYPE_CHECKING:
    from tokenization.vq_base import VQ

PIXELS_AT_ONCE = 1 << 16
"""Pixels that a thread computes at a time: 16 pictures of 64 px, 4 of 128 px. Above 181 px batches gain nothing."""
MARGIN = 8
"""How much further than measured rounding may move a latent."""
PROBES = 16
"""Made pictures on which rounding is measured."""


class Settled(NamedTuple):
    """Codes int64 [b, h, w], and each latent's margin (Euclidean, float32 [b, h, w]): a smaller change keeps its
    code."""

    codes: torch.Tensor
    slack: torch.Tensor


@dataclass
class BatchCounts:
    """Counters of batched encoding: images, those encoded again alone, and the largest change of a latent of these."""

    pictures: int = 0
    again: int = 0
    moved: float = 0.0
    bound: float = 0.0


def nearest_two(latents: torch.Tensor, codebook: torch.Tensor) -> Settled:
    """Nearest entry of `codebook` [n, c] by Euclidean distance for latents [b, h, w, c], with margins.

    A latent that moves by m changes no distance by more than m. So the code stays as long as m is below half the difference of the
    two smallest distances, less what squares and products of c numbers may be off by in float32.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    if len(codebook) < 2:
        return Settled(torch.zeros(latents.shape[:3], dtype=torch.int64), torch.full(latents.shape[:3], torch.inf))
    nearest = torch.cdist(flat, codebook).topk(2, largest=False)  # any of equal ones: these are uncertain
    (first, second), codes = nearest.values.T, nearest.indices[:, 0]
    off = flat.shape[1] ** 0.5 * torch.finfo(torch.float32).eps * (2 * flat.norm(dim=1) + second) ** 2
    slack = (second**2 - first**2 - off) / (2 * (first + second)).clamp_min(torch.finfo(torch.float32).tiny)
    return Settled(codes.view(latents.shape[:3]), slack.view(latents.shape[:3]))


def largest_two(latents: torch.Tensor, directions: torch.Tensor) -> Settled:
    """Entry of unit `directions` [n, c] with the largest product for latents [b, h, w, c], with margins; no product
    moves further than m."""
    products = latents @ directions.T
    if len(directions) < 2:
        return Settled(products.argmax(-1), torch.full(latents.shape[:3], torch.inf))
    first, second = products.topk(2, dim=-1).values.unbind(-1)
    off = latents.shape[-1] ** 0.5 * torch.finfo(torch.float32).eps * latents.norm(dim=-1)
    return Settled(products.argmax(-1), (first - second) / 2 - off)


def at_once(height: int, width: int, pictures: int, threads: int) -> int:
    """Batch size per thread for these images."""
    return max(1, min(PIXELS_AT_ONCE // (height * width), -(-pictures // threads)))


def codes_in_batches(vq: VQ, pixels: torch.Tensor) -> torch.Tensor:
    """Codes int64 [b, h, w] of pixels float32 [b, 3, H, W] on the CPU, equal to encoding each image alone with one
    thread."""
    height, width = pixels.shape[2:]
    size = at_once(height, width, len(pixels), torch.get_num_threads())
    if size == 1:
        return torch.cat(one_thread_each(vq._encode, pixels.split(1)))
    bound = bound_for(vq, pixels)
    latents, codes, slack = map(
        torch.cat, zip(*one_thread_each(lambda some: _settled(vq, some), pixels.split(size)), strict=True)
    )
    done = torch.zeros(len(pixels), dtype=torch.bool)
    while True:
        # NaN compares as uncertain
        again = (~(slack > bound).flatten(1).all(1) & ~done).nonzero().flatten()
        if not len(again):
            break
        alone = one_thread_each(_alone(vq), [pixels[number : number + 1] for number in again])
        codes[again] = torch.cat([one for one, _ in alone])
        done[again] = True
        moved = furthest(latents[again], torch.cat([latent for _, latent in alone]))
        vq.batches.moved = max(vq.batches.moved, moved)
        bound = vq.bounds[height, width] = max(bound, moved * MARGIN if moved > bound / 2 else 0.0)
    vq.batches.pictures += len(pixels)
    vq.batches.again += int(done.sum())
    vq.batches.bound = max(vq.batches.bound, bound)
    return codes


def bound_for(vq: VQ, pixels: torch.Tensor) -> float:
    """Bound on a latent's change between batched and single encoding; measured once for each image size."""
    height, width = size = pixels.shape[2], pixels.shape[3]
    if size not in vq.bounds:
        made = probes(height, width)
        alone = torch.cat(one_thread_each(vq._latents, made.split(1)))
        scale = alone.norm(dim=-1).max().item() * torch.finfo(torch.float32).eps
        batches = {at_once(height, width, PROBES, threads) for threads in (1, 2)} - {1}
        moved = [furthest(torch.cat(one_thread_each(vq._latents, made.split(batch))), alone) for batch in batches]
        vq.bounds[size] = MARGIN * max([scale, *moved])
    return vq.bounds[size]


def furthest(some: torch.Tensor, others: torch.Tensor) -> float:
    """Largest Euclidean distance between latents [b, h, w, c] of the same positions; NaN in both counts as equal."""
    return torch.nan_to_num((some - others).norm(dim=-1), nan=0.0).max().item()


def probes(height: int, width: int) -> torch.Tensor:
    """Synthetic images float32 [PROBES, 3, height, width] in -1..1, always the same: flat ones, flat with a speck, fine
    and coarse colours."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(PROBES):
        cells = 1 << (number % 6)
        colours = torch.from_numpy(generator.random((1, 3, cells, cells), dtype=np.float32)) * 2 - 1
        picture = torch.nn.functional.interpolate(colours, (height, width), mode="bilinear", align_corners=False)
        if number >= PROBES - 4:
            picture = torch.full_like(picture, (-1.0, 1.0, 0.0, 0.5)[number - PROBES])
            picture[:, :, height // 2, width // 2] += number % 2 * 2 / 255
        made.append(picture.clamp(-1, 1))
    return torch.cat(made)


def _settled(vq: VQ, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    latents = vq._latents(pixels)
    return latents, *vq._settle(latents)


def _alone(vq: VQ) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    def encode(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = vq._latents(picture)
        return vq._codes(latents), latents

    return encode
