"""Random augmentation of the training images of an image tokenizer."""

from __future__ import annotations

import math


def augment(small, large, generator):
    """Random augmentation: images at their size [b, 3, s, s] and at twice it [b, 3, 2s, 2s], in -1..1 -> [b, 3, s, s].

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
