"""Layouts of the DeepSpeed engine: ZeRO stage, memory of each device, and communication.

Stage 1 reduces gradients once a step and gathers weights once, after the update. Stage 2 reduces gradients for every row.
Stage 3 also gathers weights twice for every row, with DeepSpeed's prefetch; with `zero.hpz_partition_size` the second time
within a node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from model.weight_shapes import share_sizes, stage_shapes
from pretrain.config import ZeroSection
from pretrain.flops import BACKWARD
from pretrain.parallel import ParallelLayout, check_layout
from pretrain.planning import passes
from pretrain.planning.activations import ActivationBytes, activation_bytes
from pretrain.planning.cost import StepTime, exposed, tensor_bytes
from pretrain.planning.layouts import AGAIN, GIB, Plan, PlannerJob, Rejected, StagePlan, divisors
from pretrain.planning.memory import PipelineStage, StaticBytes, gradient_width
from pretrain.planning.zero import buffer_bytes, zero_bytes
from pretrain.process_ranks import check_world
from pretrain.system.errors import UserError

FIRST = 0.02  # exposed share of communication: the layers at the ends, and the embedding


def zero_candidates(job: PlannerJob) -> Iterator[tuple[ParallelLayout, ZeroSection, int]]:
    """Yield (layout, ZeRO settings, data-parallel ranks) of every way to use the devices; offload as configured."""
    given = job.config.parallel
    for tensor in divisors(job.gpus):
        for sequence in (True, False) if tensor > 1 else (False,):
            for again in AGAIN:
                layout = ParallelLayout(
                    tensor=tensor, sequence=sequence, overlap=given.overlap, gradients=given.gradients, **again
                )
                for stage in (1, 2, 3):
                    yield layout, dataclasses.replace(job.config.zero, stage=stage), job.gpus // tensor


def plan_zero(job: PlannerJob) -> tuple[list[Plan], list[Rejected]]:
    """(layouts that fit, fastest first; rejected ones)."""
    found = [_plan_one(job, *candidate) for candidate in zero_candidates(job)]
    plans = [each for each in found if isinstance(each, Plan)]
    plans.sort(key=lambda plan: (plan.time.total, plan.fullest.total))
    return plans, [each for each in found if isinstance(each, Rejected)]


def _plan_one(job: PlannerJob, parallel: ParallelLayout, zero: ZeroSection, ranks: int) -> Plan | Rejected:
    if parallel.tensor > job.devices.per_node:
        return Rejected(
            parallel,
            ranks,
            f"{parallel.tensor} tensor-parallel ranks do not fit in a node of {job.devices.per_node} devices",
        )
    try:
        check_layout(parallel, job.model)
        check_world(dataclasses.replace(job.config, parallel=parallel, zero=zero), job.gpus)
    except UserError as error:
        return Rejected(parallel, ranks, str(error))
    stage = PipelineStage(0, job.model.num_hidden_layers, True, True)
    shapes = stage_shapes(job.model, 0, stage.layers, embedding=True, head=True)
    sizes = share_sizes(shapes, parallel.tensor)
    decays = {name: len(shape) > 1 and not name.endswith(".bias") for name, shape in shapes.items()}
    static = zero_bytes(sizes, decays, ranks, zero, job.half)
    counted = activation_bytes(job.model, stage, job.row, parallel, 2 if job.half else 4, 1)
    more = buffer_bytes(sizes, zero, job.half)
    held = ActivationBytes(counted.kept, counted.recomputed, counted.layer + more, counted.head + more, 1)
    plan = StagePlan(stage, static, held, 0)
    if plan.total > job.usable:
        return Rejected(parallel, ranks, f"more than {job.usable / GIB:.1f} GiB on a device", plan.total, zero.stage)
    return Plan(parallel, ranks, (plan,), zero_step_time(job, parallel, zero, ranks, stage, static), zero.stage)


def zero_step_time(
    job: PlannerJob, parallel: ParallelLayout, zero: ZeroSection, ranks: int, stage: PipelineStage, static: StaticBytes
) -> StepTime:
    """Step time: rows one after the other, communication of each hidden behind its own compute as far as possible."""
    devices, tensor, width, rows = (
        job.devices,
        parallel.tensor,
        2 if job.half else 4,
        job.config.data.global_batch_size // ranks,
    )
    row = job.costs.of(job.model, stage, parallel) / tensor
    if tensor > 1 and not parallel.sequence:
        again = passes.PASSES * job.row.tokens * job.model.hidden_size * width / devices.memory * (tensor - 1) / tensor
        row += stage.layers * again
    sent_tensor = tensor_bytes(job.model, stage, job.row, parallel, width)
    forward, backward = ((row + sent_tensor / devices.within) * share / (1 + BACKWARD) for share in (1, BACKWARD))
    ring = (ranks - 1) / ranks
    weights, sums = ring * static.parameters * width, ring * static.parameters * gradient_width(parallel, job.half)
    members = max(1, devices.per_node // tensor)
    link = min(devices.within, members * devices.between) if tensor * ranks > devices.per_node else devices.within
    near = devices.within if zero.hpz_partition_size else link

    def left(seconds: float, window: float) -> float:
        return seconds * (exposed(seconds, FIRST, window) if parallel.overlap else 1.0)

    ahead = weights / link if zero.stage == 3 else 0.0
    behind = (weights / near if zero.stage == 3 else 0.0) + (sums / link if zero.stage > 1 else 0.0)
    open_ = rows * (left(ahead, forward) + left(behind, backward))
    total = rows * (ahead + behind)
    if zero.stage == 1:
        open_, total = open_ + left(sums / link, backward), total + sums / link
    if zero.stage < 3:
        open_, total = open_ + weights / link, total + weights / link  # after the update: nothing to overlap with
    sent = rows * sent_tensor + weights * (2 * rows if zero.stage == 3 else 1) + sums * (rows if zero.stage > 1 else 1)
    updated = dataclasses.replace(parallel, distributed_optimizer=True)
    return StepTime(
        compute=rows * row + devices.contention * (total - open_),
        bubble=0.0,
        tensor=rows * sent_tensor / devices.within,
        pipeline=0.0,
        data=open_,
        update=passes.update_bytes(static, updated, ranks, job.half) / devices.memory,
        sent=sent,
        hidden=total - open_,
    )
