"""Sums of gradients that a step's first matrix product writes: they are neither zeroed nor read before."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel import layers
from torch import Tensor

from model.gpu_kernels import WeightGradients
from model.uni_x import UniXTrainingModel


def begin_with_products(stage: UniXTrainingModel, module: DistributedDataParallel) -> list[Tensor]:
    """Make megatron-core's `zero_grad_buffer` leave the sums of linear layers' weights to `WeightGradients` -> those sums;
    none where layers do not add with it.

    A layer without a token in a row calls it too. The LM head's gradient comes another way.
    """
    if vars(layers).get("fused_weight_gradient_mlp_cuda") is not WeightGradients:
        return []
    adding = {
        layer.weight
        for layer in stage.modules()
        if isinstance(layer, (layers.ColumnParallelLinear, layers.RowParallelLinear))
        and layer.gradient_accumulation_fusion
        and layer.weight is not None
    }
    if stage.post_process:
        adding.discard(stage.output_weight())
    found = []
    for buffer in module.buffers:
        sums = [weight.main_grad for weight in buffer.params if weight in adding]
        others = [weight.main_grad for weight in buffer.params if weight not in adding]
        if sums and not getattr(buffer, "extra_main_grads", None):
            buffer.reset = functools.partial(_begin, sums, others)
            found += sums
    return found


def _begin(sums: Sequence[Any], others: list[Tensor]) -> None:
    if others:
        torch._foreach_zero_(others)
    for total in sums:
        total.overwritten = True


def check_written(sums: Sequence[Tensor]) -> None:
    """RuntimeError for a sum of the step before: every layer takes part in every row."""
    left = [total.shape for total in sums if hasattr(total, "overwritten")]
    if left:
        raise RuntimeError(f"{len(left)} weights got no gradient in a step, the first of shape {list(left[0])}")
