"""Optimizer step on megatron-core's optimizers: gradient norm without host synchronization, one scaling, fused AdamW.

megatron-core's own step takes the norm on the host, and without transformer-engine or apex tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor


def inner_optimizers(optimizer) -> list:
    """Optimizers inside megatron-core's chained optimizer; a stage without weights has a stub with none."""
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [inner for inner in chained if not getattr(inner, "is_stub_optimizer", False)]


def fuse(optimizer) -> None:
    """Switch torch's AdamW, where it is used, to its fused form, with the step count on the device."""
    for inner in inner_optimizers(optimizer):
        if isinstance(inner.optimizer, torch.optim.AdamW):
            for settings in (inner.optimizer.defaults, *inner.optimizer.param_groups):
                settings.update(fused=True, foreach=False)


def _parameters(optimizer) -> Iterator[tuple[Any, object]]:
    """Parameters that have a gradient (Any, not Parameter: a gradient might be None), and their tensor-parallel
    group."""
    for inner in inner_optimizers(optimizer):
        for group in inner.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield parameter, getattr(inner, "tp_group", None)


def gradient_norm(optimizer, device) -> Tensor:
    """Global gradient norm, float32 [] on the device; call `prepare_grads` first. A collective: all ranks call it."""
    counted = [
        parameter.grad
        for parameter, group in _parameters(optimizer)
        if param_is_not_shared(parameter) and tensor_parallel.param_is_not_tensor_parallel_duplicate(parameter, group)
    ]
    square = torch.zeros((), dtype=torch.float32, device=device)
    if counted:
        square = torch.stack(torch._foreach_norm(counted)).square().sum()
    torch.distributed.all_reduce(square, group=optimizer.get_grad_stats_parallel_group())
    return square.sqrt()


def scale_gradients(optimizer, factor: float) -> None:
    """Multiply every gradient that this rank's optimizer reads by a factor."""
    gradients = [parameter.grad for parameter, _ in _parameters(optimizer)]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def clip_factor(norm: float, limit: float) -> float:
    """Factor that clips a gradient of this norm to `limit` (0: no limit)."""
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
