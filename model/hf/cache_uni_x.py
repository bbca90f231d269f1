"""A cache whose room is reserved once. Imports torch and transformers only."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values [b, kv_heads, tokens, head_dim] of one layer, in memory that is reserved for `room` tokens.

    A DynamicLayer copies all keys to append one, and a StaticLayer hands out the empty slots too, which attention then
    computes and masks. This one writes in place and hands out what is filled. It grows only: whoever reorders or
    selects rows takes another cache.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append [b, kv_heads, new, head_dim] -> all keys and values so far, as views. ValueError without room."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.reserved = [self._reserve(key_states), self._reserve(value_states)]
            self.length, self.is_initialized = 0, True
        end = self.length + key_states.shape[2]
        if end > self.room:
            raise ValueError(f"the cache has room for {self.room} tokens, not for {end}: reserve more")
        for memory, new in zip(self.reserved, (key_states, value_states), strict=True):
            memory[:, :, self.length : end] = new
        self.keys, self.values = (memory[:, :, :end] for memory in self.reserved)
        self.length = end
        return self.keys, self.values

    def _reserve(self, states: Tensor) -> Tensor:
        batch, heads, _, head_dim = states.shape
        return torch.empty(batch, heads, self.room, head_dim, dtype=states.dtype, device=states.device)


def reserved_cache(num_layers: int, room: int) -> Cache:
    """A cache for `room` tokens of `num_layers` layers."""
    return Cache(layers=[ReservedLayer(room) for _ in range(num_layers)])
