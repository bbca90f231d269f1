"""Checkpoint state of a rank under ZeRO, as tensor boxes that any layout and engine reads.

Stage 3 shards every weight over the data-parallel ranks. Stages 1 and 2 shard the concatenated weights, so a rank has the
end of one weight, some full ones, and the beginning of another. Either way a rank has one flat range of a weight, or none.
Names are those of `rank_state`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from model.tensor_shards import whole_shape
from pretrain.engines.rank_state import MOMENTS
from pretrain.tensor_boxes import TensorBox, boxes_of


@dataclass(frozen=True)
class Stretch:
    """Flat partition of this tensor-parallel rank's shard of a weight, which has `shape`: elements `start`, `start` +
    1, ..."""

    name: str
    shape: tuple[int, ...]
    start: int
    weight: Tensor  # 1-D, in the dtype of training
    main: Tensor  # 1-D, float32: what Adam updates
    flat: Tensor  # flat tensor that `main` is a slice of, from `place` on; Adam's state is that of the whole
    place: int


def stretches(engine, names: dict[torch.nn.Parameter, str]) -> Iterator[Stretch]:
    """Partitions of this rank, without empty ones. `engine` is DeepSpeed's."""
    optimizer = engine.optimizer
    rank = parallel_state.get_data_parallel_rank()
    if engine.zero_optimization_partition_weights():
        for parameters, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
            place = 0
            for parameter in parameters:
                size = parameter.partition_numel()
                start = rank * size
                count = min(size, parameter.ds_numel - start)
                if count > 0:
                    yield Stretch(
                        names[parameter],
                        tuple(parameter.ds_shape),
                        start,
                        parameter.ds_tensor.data[:count],
                        flat.data[place : place + count],
                        flat,
                        place,
                    )
                place += size
        return
    groups = zip(
        optimizer.round_robin_bit16_groups,
        optimizer.round_robin_bit16_offsets,
        optimizer.partition_size,
        optimizer.single_partition_of_fp32_groups,
        strict=True,
    )
    for parameters, offsets, size, flat in groups:
        for parameter, at in zip(parameters, offsets, strict=True):
            first, last = max(at, rank * size), min(at + parameter.numel(), (rank + 1) * size)
            if first < last:
                place = first - rank * size
                yield Stretch(
                    names[parameter],
                    tuple(parameter.shape),
                    first - at,
                    parameter.data.view(-1)[first - at : last - at],
                    flat.data[place : place + last - first],
                    flat,
                    place,
                )


def weight_boxes(held: list[Stretch]) -> list[TensorBox]:
    """The weights, in the training dtype."""
    return [box for stretch in held for box in _pieces(stretch, stretch.name, stretch.weight)]


def frozen_boxes(names: Mapping[Any, str], cut: bool) -> list[TensorBox]:
    """This rank's partition of frozen weights, which DeepSpeed's optimizer does not hold.

    cut: whether they are cut over the data-parallel ranks (stage 3); if not, each rank has them whole and writes a part.
    """
    group = parallel_state.get_data_parallel_group()
    boxes: list[TensorBox] = []
    for parameter, name in names.items():
        if parameter.requires_grad:
            continue
        flat, shape = (
            (parameter.ds_tensor.data, parameter.ds_shape) if cut else (parameter.data.view(-1), parameter.shape)
        )
        elements = math.prod(shape)
        size = len(flat) if cut else -(-elements // group.size())
        start = group.rank() * size
        part = flat[: elements - start] if cut else flat[start : start + size]
        if start < elements:
            boxes += boxes_of(name, name, tuple(shape), part, *tensor_ranks(), start=start)
    return boxes


def optimizer_boxes(held: list[Stretch], optimizer: torch.optim.Optimizer) -> list[TensorBox]:
    """Adam's moments, and fp32 master weights if training is in bf16; state that Adam has not created yet is
    created."""
    boxes: list[TensorBox] = []
    for stretch in held:
        state, count = state_of(stretch, optimizer), len(stretch.main)
        tensors = {kind: state[kind][stretch.place : stretch.place + count] for kind in MOMENTS}
        if stretch.weight.dtype != torch.float32:
            tensors["master"] = stretch.main
        for kind, tensor in tensors.items():
            boxes += _pieces(stretch, f"optimizer.{kind}.{stretch.name}", tensor)
    return boxes


def ours(boxes: list[TensorBox]) -> list[TensorBox]:
    """Boxes without those that another tensor-parallel rank writes too: norms are replicated."""
    rank, ranks = tensor_ranks()
    return [box for box in boxes if rank == 0 or whole_shape(_name(box.key), (1, 1), ranks) != (1, 1)]


def state_of(stretch: Stretch, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state of the tensor that holds the partition; created if Adam has not done so."""
    state = optimizer.state[stretch.flat]
    if not state:
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(stretch.flat.data)
        state["step"] = torch.zeros((), dtype=torch.float32, device=stretch.flat.device)
    return state


def _pieces(stretch: Stretch, key: str, tensor: Tensor) -> Iterator[TensorBox]:
    return boxes_of(key, stretch.name, stretch.shape, tensor, *tensor_ranks(), start=stretch.start)


def _name(key: str) -> str:
    return key.split(".", 2)[2] if key.startswith("optimizer.") else key


def tensor_ranks() -> tuple[int, int]:
    """(rank, ranks) of the tensor-parallel group."""
    return parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
