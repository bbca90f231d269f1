"""Memory of a rank: weights, gradients and optimizer state to the byte, activations by a count of saved tensors.

The rules for the first three are megatron-core's: gradients in a float32 buffer; Adam's two moments in float32; float32
master weights where weights are bfloat16; with the distributed optimizer, parameters padded to 64 and buckets to a
multiple of 128 and of the ranks, of which each has an equal stretch. torch's Adam also counts steps, 4 bytes a weight
tensor, which are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.weight_shapes import EMBEDDING, HEAD, share_sizes, stage_shapes
from pretrain.parallel import ParallelLayout, bucket_elements

Bucket = tuple[int, list[tuple[int, int]]]  # elements, and (start, end) of each parameter in it


@dataclass(frozen=True)
class PipelineStage:
    """A pipeline stage: `layers` layers from number `first` on."""

    first: int
    layers: int
    embedding: bool
    head: bool

    @property
    def written(self) -> str:
        """Stage in a layout string: E, a t for each layer, L."""
        return "E" * self.embedding + "t" * self.layers + "L" * self.head

    def kinds(self, config: ModelConfig) -> tuple[str, ...]:
        """Layer kinds of the stage."""
        return config.layer_kinds[self.first : self.first + self.layers]


@dataclass(frozen=True)
class StaticBytes:
    """Memory of a rank between steps."""

    parameters: int  # elements
    weights: int
    gradients: int
    optimizer: int  # of the data-parallel rank that has most

    @property
    def total(self) -> int:
        """Total bytes."""
        return self.weights + self.gradients + self.optimizer


def state_width(half: bool) -> int:
    """Bytes of optimizer state per element: two moments, and a master weight where weights are bfloat16."""
    return 12 if half else 8


def gradient_width(parallel: ParallelLayout, half: bool) -> int:
    """Bytes per element of the gradient buffer, which is accumulated over rows and reduced."""
    return 2 if half and parallel.gradients == "bf16" else 4


def static_bytes(
    config: ModelConfig, stage: PipelineStage, parallel: ParallelLayout, data_ranks: int, half: bool
) -> StaticBytes:
    """Static memory of a rank of this stage. half: bfloat16 weights."""
    shapes = stage_shapes(config, stage.first, stage.layers, stage.embedding, stage.head)
    sizes = share_sizes(shapes, parallel.tensor)
    held, width = sum(sizes.values()), 2 if half else 4
    summed = gradient_width(parallel, half)
    if not parallel.distributed_optimizer:
        return StaticBytes(held, width * held, summed * held, state_width(half) * held)
    tied = config.tie_word_embeddings and parallel.pipeline > 1  # both copies are reduced together
    overlap = parallel.overlap and data_ranks > 1 and stage.embedding  # later stages wait for the first in any case
    limit = bucket_elements(data_ranks) if overlap else 0
    buckets = buckets_of(sizes, data_ranks, {EMBEDDING, HEAD} if tied else set(), limit)
    buffer = sum(size for size, _ in buckets)
    most = max(elements_of_rank(buckets, rank, data_ranks) for rank in range(data_ranks))
    return StaticBytes(held, width * buffer, summed * buffer, state_width(half) * most)


def buckets_of(sizes: dict[str, int], data_ranks: int, alone: set[str], limit: int = 0) -> list[Bucket]:
    """Gradient buckets of megatron-core's buffer with the distributed optimizer.

    Parameters come in reverse order; those in `alone` have a bucket of their own, and one of `limit` elements or more is
    full (0: none is).
    """
    multiple = math.lcm(data_ranks, 128)
    buckets: list[Bucket] = []
    places: list[tuple[int, int]] = []
    end = 0
    for name, size in reversed(sizes.items()):
        if name in alone and places:
            buckets.append((_up(end, multiple), places))
            end, places = 0, []
        start = _up(end, 64)
        end = start + size
        places.append((start, end))
        if name in alone or limit and end >= limit:
            buckets.append((_up(end, multiple), places))
            end, places = 0, []
    return [*buckets, (_up(end, multiple), places)] if places else buckets


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def elements_of_rank(buckets: Sequence[Bucket], rank: int, data_ranks: int) -> int:
    """Parameter elements whose optimizer state this data-parallel rank holds: its shard of every bucket."""
    held = 0
    for size, places in buckets:
        low, high = size // data_ranks * rank, size // data_ranks * (rank + 1)
        held += sum(max(0, min(end, high) - max(start, low)) for start, end in places)
    return held
