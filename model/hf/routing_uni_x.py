"""Which branch computes a token, and which tokens it attends to. Imports torch and transformers only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer, StaticLayer

TEXT, VISION = 0, 1  # the branches, in the order in which they are computed


class Routing:
    """Which branch computes which token: found once a forward pass, used by all layers that have two branches.

    A branch without tokens is not computed, so that a text-only input costs what the base LLM costs.
    """

    def __init__(self, visual: Tensor | None) -> None:
        """`visual` [b, s]: True for tokens of the vision branch; None where one branch computes all tokens."""
        if visual is None:
            self.branches = [TEXT]
            return
        visual = visual.flatten()
        num_visual = int(visual.sum())
        self.counts = [visual.numel() - num_visual, num_visual]
        self.branches = [branch for branch in (TEXT, VISION) if self.counts[branch]]
        if len(self.branches) == 2:
            self.order = torch.argsort(visual.byte(), stable=True)  # text first, each in document order
            self.inverse = torch.argsort(self.order)

    def split(self, x: Tensor) -> list[Tensor]:
        """[b * s, ...] -> one tensor a branch."""
        return list(x[self.order].split(self.counts)) if len(self.branches) == 2 else [x]

    def merge(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat(parts)[self.inverse] if len(self.branches) == 2 else parts[0]


def keys_after(cache: Cache | None, total: int) -> int:
    """Keys that attention gets to see once the cache holds `total` tokens: all slots of a static cache."""
    first = cache.layers[0] if cache is not None and cache.layers else None
    return first.max_cache_len if isinstance(first, StaticLayer) else total


def remember_modality(cache: Cache, modality: Tensor, cache_position: Tensor, num_layers: int) -> Tensor:
    """Append the modality [b, 1, s, 1] of new tokens to the cache; returns that of all its tokens [b, 1, total, 1].

    It is kept as one more layer of the same cache, so that whatever transformers does to a cache (reorder for beams,
    crop, repeat, select, static allocation) happens to it too.
    """
    while len(cache.layers) < num_layers:  # a DynamicCache made without a config adds its layers when first used
        cache.layers.append(cache.layer_class_to_replicate())
    if len(cache.layers) == num_layers:
        first = cache.layers[0]
        cache.layers.append(StaticLayer(first.max_cache_len) if isinstance(first, StaticLayer) else DynamicLayer())
    modality, _ = cache.layers[num_layers].update(modality, modality, {"cache_position": cache_position})
    return modality


def attention_masks(
    cache_position: Tensor, keys_seen: int, attention_mask: Tensor | None, modality: tuple[Tensor, Tensor] | None
) -> tuple[Tensor | None, Tensor | None]:
    """Masks of shared and of separated layers, True where a query sees a key: [b or 1, 1, s, total].

    None stands for plain causal attention, which needs no mask. `cache_position` [s]: index of each query in the
    sequence; `attention_mask` [b, total or less]: 0 for padding; `modality`: of queries and keys, [b, 1, s, 1] and
    [b, 1, total, 1]. Every token sees at least itself, so that padding has no empty row, whose softmax is not a number.
    """
    queries, keys = cache_position[:, None], torch.arange(keys_seen, device=cache_position.device)
    joint = None
    num_queries, is_last = len(cache_position), int(cache_position[-1]) + 1 == keys_seen
    padded = attention_mask is not None and not bool(attention_mask.all())
    if padded or not is_last or num_queries not in (1, keys_seen):
        joint = (keys <= queries)[None, None]
        if attention_mask is not None:
            unwritten = max(0, keys_seen - attention_mask.shape[1])  # slots of a static cache
            real = nn.functional.pad(attention_mask[:, :keys_seen].bool(), (0, unwritten))
            joint = (joint & real[:, None, None, :]) | (keys == queries)
    if modality is None or bool(modality[1].amin() == modality[1].amax()):
        return joint, joint
    same = modality[0] == modality[1].transpose(-1, -2)
    return joint, same & ((keys <= queries) if joint is None else joint)
