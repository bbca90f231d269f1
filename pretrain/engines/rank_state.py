"""Checkpoint state of this rank, as tensor boxes: weights, Adam's moments, fp32 master weights.

Stored names: a weight has its training name; its states are `optimizer.exp_avg.<name>`, `optimizer.exp_avg_sq.<name>` and,
where weights are bf16, `optimizer.master.<name>`. They are the same whichever of megatron-core's optimizers holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from model.tensor_shards import whole_shape
from model.uni_x import UniXTrainingModel
from pretrain.engines.stages import EMBEDDING, held_weights
from pretrain.engines.update import inner_optimizers
from pretrain.tensor_boxes import TensorBox, boxes_of, owned

MOMENTS = ("exp_avg", "exp_avg_sq")


def weight_boxes(stages: Sequence[UniXTrainingModel]) -> list[TensorBox]:
    """All weights of this rank, including those replicated on other ranks."""
    rank, ranks = _tensor_ranks()
    return [
        box
        for name, parameter in held_weights(stages)
        for box in boxes_of(name, name, parameter.shape, parameter.data, rank, ranks)
    ]


def optimizer_boxes(stages: Sequence[UniXTrainingModel], optimizer) -> list[TensorBox]:
    """All optimizer state of this rank; state that Adam has not created yet is created as zeros."""
    rank, ranks = _tensor_ranks()
    names = {parameter: name for name, parameter in held_weights(stages)}
    boxes: list[TensorBox] = []
    for parameter, start, tensors in _states(optimizer):
        name = names[parameter]
        for kind, tensor in tensors.items():
            boxes += boxes_of(f"optimizer.{kind}.{name}", name, parameter.shape, tensor, rank, ranks, start)
    return boxes


def boxes_to_write(stages: Sequence[UniXTrainingModel], optimizer) -> list[TensorBox]:
    """Boxes that this rank writes: over all ranks each element once, about equal bytes on each rank of a group."""
    group = parallel_state.get_data_parallel_group()
    weights = [box for box in weight_boxes(stages) if _is_ours(box.key, stages)]
    states = [box for box in optimizer_boxes(stages, optimizer) if _is_ours(box.key, stages)]
    if any(isinstance(inner, DistributedOptimizer) for inner in inner_optimizers(optimizer)):
        return owned(weights, group.rank(), group.size()) + states  # each rank has its own shard of the states
    return owned([*weights, *states], group.rank(), group.size())


def _is_ours(key: str, stages: Sequence[UniXTrainingModel]) -> bool:
    """Whether this tensor-parallel rank and stage write a replicated weight: norms, the tied embedding's copy."""
    name = key.split(".", 2)[2] if key.startswith("optimizer.") else key
    if name == EMBEDDING and not any(stage.pre_process for stage in stages):
        return False
    rank, ranks = _tensor_ranks()
    return rank == 0 or whole_shape(name, (1, 1), ranks) != (1, 1)


def _tensor_ranks() -> tuple[int, int]:
    return parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()


def _states(optimizer) -> Iterator[tuple[torch.nn.Parameter, int | None, dict[str, Tensor]]]:
    """Yield (parameter, its first element that this rank updates or None for all, state tensors) of each parameter."""
    for inner in inner_optimizers(optimizer):
        for parameter, start, main in _mains(inner):
            state = inner.optimizer.state[main]
            for kind in MOMENTS:
                if kind not in state:
                    state[kind] = torch.zeros_like(main.data)
            tensors = {kind: state[kind] for kind in MOMENTS}
            if parameter.dtype != main.dtype:
                tensors["master"] = main.data
            yield parameter, start, tensors


def _mains(inner) -> Iterator[tuple[torch.nn.Parameter, int | None, Tensor]]:
    """Yield (parameter, start, its master tensor, which Adam updates) of each parameter of one optimizer."""
    if isinstance(inner, DistributedOptimizer):
        for parameter, (group, place) in inner.model_param_group_index_map.items():
            start = inner._get_model_param_range_map(parameter)["param"].start
            yield parameter, start, inner.optimizer.param_groups[group]["params"][place]
        return
    half = [parameter for group in getattr(inner, "float16_groups", ()) for parameter in group]
    by_main = {parameter.main_param: parameter for parameter in half}
    for group in inner.optimizer.param_groups:
        for main in group["params"]:
            yield by_main.get(main, main), None, main


def set_adam_steps(optimizer, steps: int) -> None:
    """Set Adam's step count: torch keeps it by parameter, fused optimizers by group."""
    for inner in inner_optimizers(optimizer):
        by_parameter = isinstance(inner.optimizer, (torch.optim.Adam, torch.optim.AdamW))
        for group in inner.optimizer.param_groups:
            if not by_parameter:
                group["step"] = steps
                continue
            for main in group["params"]:
                inner.optimizer.state[main]["step"] = torch.tensor(float(steps), device=main.device)
