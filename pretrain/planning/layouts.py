"""All layouts of a model over a number of devices: which fit, their expected speed, and why the others are rejected."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.config import ModelConfig
from model.weight_shapes import EMBEDDING, layer_shapes, share_sizes
from pretrain.config import TrainConfig
from pretrain.engines import ENGINES, named
from pretrain.parallel import ParallelLayout, check_layout
from pretrain.planning.activations import ActivationBytes, RowShape, activation_bytes
from pretrain.planning.cost import Devices, PartCosts, StepTime, step_time
from pretrain.planning.cuts import MEBIBYTE, OfStage, balance, fill, layout_string, stages_of
from pretrain.planning.memory import PipelineStage, StaticBytes, gradient_width, state_width, static_bytes
from pretrain.process_ranks import check_world
from pretrain.system.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class PlannerJob:
    """What is planned: model, row, devices and batch."""

    config: TrainConfig
    model: ModelConfig
    row: RowShape
    gpus: int
    usable: int  # usable bytes of a device
    devices: Devices
    costs: PartCosts

    @property
    def half(self) -> bool:
        """Whether weights and activations are bfloat16."""
        return self.config.run.precision == "bf16"


@dataclass(frozen=True)
class StagePlan:
    """Memory of a rank of one stage."""

    stage: PipelineStage
    static: StaticBytes
    activations: ActivationBytes
    update: int  # temporary bytes of Adam while no activations are held: gradients in float32 where they were not

    @property
    def total(self) -> int:
        """Peak bytes."""
        return self.static.total + max(self.activations.peak, self.update)


@dataclass(frozen=True)
class Plan:
    """A layout that fits."""

    parallel: ParallelLayout
    data_ranks: int
    stages: tuple[StagePlan, ...]
    time: StepTime
    zero: int = 0  # ZeRO stage, where DeepSpeed's engine is planned

    @property
    def fullest(self) -> StagePlan:
        """Stage with the most memory."""
        return max(self.stages, key=lambda each: each.total)


@dataclass(frozen=True)
class Rejected:
    """A rejected layout, its reason, and the bytes of its fullest rank where memory is the reason."""

    parallel: ParallelLayout
    data_ranks: int
    reason: str
    needs: int = 0
    zero: int = 0


AGAIN: tuple[dict[str, Any], ...] = ({}, {"recompute_cheap": True}, {"recompute": True})  # settings of a ParallelLayout


def divisors(number: int) -> list[int]:
    """Divisors of a positive number, ascending."""
    return [each for each in range(1, number + 1) if number % each == 0]


def candidates(gpus: int) -> Iterator[tuple[ParallelLayout, int]]:
    """Yield (layout without its stages, data-parallel ranks) of every way to use `gpus` devices."""
    for tensor in divisors(gpus):
        for pipeline in divisors(gpus // tensor):
            ranks = gpus // tensor // pipeline
            for sequence in (True, False) if tensor > 1 else (False,):
                for again in AGAIN:
                    for distributed in (True, False) if ranks > 1 else (False,):
                        yield (
                            ParallelLayout(
                                tensor=tensor,
                                sequence=sequence,
                                pipeline=pipeline,
                                distributed_optimizer=distributed,
                                **again,
                            ),
                            ranks,
                        )


def plan_layouts(job: PlannerJob) -> tuple[list[Plan], list[Rejected]]:
    """(layouts that fit, fastest first; rejected ones)."""
    planned = ENGINES[job.config.run.engine].plan
    if planned:
        return named(planned)(job)
    plans: list[Plan] = []
    rejected: list[Rejected] = []
    given = job.config.parallel
    for parallel, ranks in candidates(job.gpus):
        parallel = dataclasses.replace(parallel, overlap=given.overlap, gradients=given.gradients)
        found = plan_one(job, parallel, ranks)
        if isinstance(found, Plan):
            plans.append(found)
        else:
            rejected.append(found)
    plans.sort(key=lambda plan: (plan.time.total, plan.fullest.total))
    return plans, rejected


def plan_one(job: PlannerJob, parallel: ParallelLayout, ranks: int) -> Plan | Rejected:
    """One layout with its best pipeline split, or why there is none."""
    layers = job.model.num_hidden_layers
    if parallel.tensor > job.devices.per_node:
        return Rejected(
            parallel,
            ranks,
            f"{parallel.tensor} tensor-parallel ranks do not fit in a node of {job.devices.per_node} devices",
        )
    if parallel.pipeline > layers:
        return Rejected(parallel, ranks, f"{parallel.pipeline} stages for {layers} layers")
    try:
        check_layout(parallel, job.model)
        check_world(dataclasses.replace(job.config, parallel=parallel), job.gpus)
    except UserError as error:
        return Rejected(parallel, ranks, str(error))
    microbatches = job.config.data.global_batch_size // ranks
    memory = memory_of_stages(job, parallel, ranks, microbatches)

    def seconds(place: int, first: int, count: int) -> float:
        stage = PipelineStage(first, count, place == 0, place == parallel.pipeline - 1)
        return job.costs.of(job.model, stage, parallel)

    counts = balance(layers, parallel.pipeline, seconds, memory, job.usable - MEBIBYTE)  # padding costs time
    if counts is None:
        least, counts = least_memory(layers, parallel.pipeline, memory)
        smallest = dataclasses.replace(parallel, layout=layout_string(stages_of(counts)))
        return Rejected(smallest, ranks, f"more than {job.usable / GIB:.1f} GiB on a device", least)
    stages = stages_of(counts)
    parallel = dataclasses.replace(parallel, layout=layout_string(stages))
    made = [stage_plan(job, parallel, ranks, microbatches, place, stage) for place, stage in enumerate(stages)]
    static = [each.static for each in made]
    time = step_time(
        job.model, stages, static, job.row, parallel, ranks, microbatches, job.costs, job.devices, job.half
    )
    return Plan(parallel, ranks, tuple(made), time)


def rows_under_way(parallel: ParallelLayout, microbatches: int, place: int) -> int:
    """Microbatches in flight on a stage at most: those that later stages can hold, and its own."""
    return min(microbatches, parallel.pipeline - place)


def stage_plan(
    job: PlannerJob, parallel: ParallelLayout, ranks: int, microbatches: int, place: int, stage: PipelineStage
) -> StagePlan:
    """Memory of a rank of a stage, weights and optimizer state to the byte."""
    static = static_bytes(job.model, stage, parallel, ranks, job.half)
    rows = rows_under_way(parallel, microbatches, place)
    activations = activation_bytes(job.model, stage, job.row, parallel, 2 if job.half else 4, rows)
    return StagePlan(stage, static, activations, 4 * static.optimizer // state_width(job.half))


def memory_of_stages(job: PlannerJob, parallel: ParallelLayout, ranks: int, microbatches: int) -> OfStage:
    """As `stage_plan(...).total` without padding, and fast: the search for splits calls it thousands of times."""
    model = job.model
    before = [0]
    for kind in model.layer_kinds:
        before.append(before[-1] + sum(share_sizes(layer_shapes(model, kind), parallel.tensor).values()))
    table = sum(share_sizes({EMBEDDING: (model.vocab_size, model.hidden_size)}, parallel.tensor).values())
    share = ranks if parallel.distributed_optimizer else 1
    each = (
        (2 if job.half else 4) + gradient_width(parallel, job.half) + state_width(job.half) / share
    )  # bytes an element
    known: dict[tuple[int, int], int] = {}

    def memory(place: int, first: int, count: int) -> float:
        embedding, head = place == 0, place == parallel.pipeline - 1
        if (place, count) not in known:
            stage = PipelineStage(first, count, embedding, head)
            rows = rows_under_way(parallel, microbatches, place)
            known[place, count] = activation_bytes(model, stage, job.row, parallel, 2 if job.half else 4, rows).peak
        tables = embedding + (head and not (embedding and model.tie_word_embeddings))
        elements = before[first + count] - before[first] + tables * table + head * model.hidden_size
        return elements * each + max(known[place, count], 4 * elements / share)

    return memory


def least_memory(layers: int, pipeline: int, memory: OfStage) -> tuple[int, list[int]]:
    """Split whose fullest stage needs least memory: (its bytes, layers of each stage)."""

    def cut(limit: int) -> list[int] | None:
        return fill(layers, pipeline, lambda *stage: memory(*stage) <= limit * MEBIBYTE)

    least = bisect_left(range(2**30), True, key=lambda limit: cut(limit) is not None)
    return least * MEBIBYTE, cut(least) or []  # there is one: that is what was searched for
