"""KV caches: a token record beside keys and values, and a preallocated cache. Imports torch and transformers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, StaticLayer


class ReservedLayer(DynamicLayer):
    """Preallocated cache layer: keys and values [b, kv_heads, tokens, head_dim] in memory for `room` tokens.

    A DynamicLayer copies all keys to append one, and a StaticLayer hands out the empty slots too, which attention then
    computes and masks. This one writes in place and hands out what is filled. It grows only: whoever reorders or
    selects rows takes another cache.
    """

    is_initialized: bool

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append [b, kv_heads, new, head_dim] -> all keys and values so far, as views. Raises ValueError when full."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.reserved = [self._reserve(key_states), self._reserve(value_states)]
            self.length = 0
            self.is_initialized = True
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
    """Preallocated cache for `room` tokens of `num_layers` layers."""
    return Cache(layers=[ReservedLayer(room) for _ in range(num_layers)])


class TokenRecord:
    """Mixin of a cache's first layer: `record`, a layer of integers, follows every operation on the cache.

    Of each token it has, [b, 1, tokens, 2], as keys the modality and the number of its document, as values that number again
    and the position in the document.

    What transformers does to a cache (reorder for beams, crop, repeat, select, reset, offload) it does to each of its
    layers; the record has to follow, and must not count as one of them.
    """

    record: CacheLayerMixin


def _also_to_the_record(name: str):
    def method(self, *args, **kwargs):
        getattr(super(self._carrying, self), name)(*args, **kwargs)
        if self.record.is_initialized:
            getattr(self.record, name)(*args, **kwargs)

    return method


FOLLOWED = ("reorder_cache", "crop", "batch_repeat_interleave", "batch_select_indices", "reset", "offload", "prefetch")


@lru_cache(maxsize=16)
def _recording(kind: type[CacheLayerMixin]) -> type[CacheLayerMixin]:
    """Subclass of `kind` with a record."""
    methods = {name: _also_to_the_record(name) for name in FOLLOWED if hasattr(kind, name)}
    made: Any = type(kind.__name__, (TokenRecord, kind), methods)
    made._carrying = made
    return made


RecordedDynamicLayer = _recording(DynamicLayer)


def record_of(cache: Cache) -> CacheLayerMixin:
    """The token record of `cache`; created if there is none."""
    if not cache.layers:  # a DynamicCache made without a config adds its layers when first used
        cache.layers.append(cache.layer_class_to_replicate())
    first = cache.layers[0]
    if not isinstance(first, TokenRecord):
        if type(first) is DynamicLayer and not first.is_initialized:
            layer = (
                RecordedDynamicLayer()
            )  # without attributes of `first`, so that a graph of torch.compile can hold it
        else:
            kind: Any = _recording(type(first))  # type: ignore[arg-type]  # classes are hashable
            layer = kind.__new__(kind)
            layer.__dict__.update(first.__dict__)
        layer.record = DynamicLayer()
        if isinstance(first, StaticLayer):
            layer.record = StaticLayer(first.max_cache_len)
        elif isinstance(first, ReservedLayer):
            layer.record = ReservedLayer(first.room)
        layer.record.plain = 0  # number of its tokens, from the first on, in one document without padding
        cache.layers[0] = layer
        first = layer
    return first.record
