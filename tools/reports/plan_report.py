"""Output of tools/plan_parallel.py: ranked layouts, rejected ones with reasons, the stages of the best."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from model.layer_kinds import KINDS
from model.weight_shapes import active_parameters, parameters
from pretrain.parallel import ParallelLayout
from pretrain.planning.cost import one_layer_flops
from pretrain.planning.layouts import Plan, PlannerJob, Rejected
from pretrain.system.words import counted
from tools.reports.text_table import table

GIB, GB = 2**30, 1e9


def summary(job: PlannerJob, name: str, gpu_memory: float) -> str:
    """What is planned, in a paragraph."""
    model, row = job.model, job.row
    return (
        f"{name}: {parameters(model) / 1e9:.2f} billion parameters, of which a token meets "
        f"{active_parameters(model) / 1e9:.2f}; {job.config.run.precision}\n"
        f"{counted(job.config.data.global_batch_size, 'row')} a step of {row.tokens:,} tokens: {row.documents} documents of "
        f"{row.text:,} text and {row.vision:,} vision tokens\n"
        f"{job.gpus} x {gpu_memory:g} GiB, of which {job.usable / GIB:.1f} may be filled"
    )


def layout_name(parallel: ParallelLayout, zero: int = 0) -> str:
    """Short name of a layout's switches; its sizes have columns of their own."""
    words = ["sequence"] * parallel.sequence + ["recompute"] * parallel.recompute
    words += ["cheap recompute"] * parallel.recompute_cheap
    cut = "distributed optimizer" if parallel.distributed_optimizer else "whole optimizer"
    return ", ".join([*words, f"ZeRO {zero}" if zero else cut])


def best_of_each(plans: Sequence[Plan]) -> list[Plan]:
    """The best layout for each combination of tensor, pipeline and data parallel sizes."""
    best: dict[tuple[int, ...], Plan] = {}
    for plan in plans:
        best.setdefault((plan.parallel.tensor, plan.parallel.pipeline, plan.data_ranks, plan.zero), plan)
    return list(best.values())


def ranked(job: PlannerJob, plans: Sequence[Plan], peak_flops: float) -> Iterator[str]:
    """A line for each layout, the fastest first."""
    tokens = job.config.data.global_batch_size * job.row.tokens
    forward = sum(one_layer_flops(job.model, job.row, kind) for kind in job.model.layer_kinds)
    forward += 2 * job.model.hidden_size * job.model.vocab_size * job.row.tokens
    useful = 3 * forward * job.config.data.global_batch_size
    head = [
        "",
        "tensor",
        "pipeline",
        "data",
        "with",
        "step s",
        "tokens/s/GPU",
        "MFU %",
        "bubble %",
        "sent GB",
        "weights+grads GiB",
        "optimizer",
        "activations",
        "peak",
    ]
    rows = [head]
    for number, plan in enumerate(plans, start=1):
        parallel, time, fullest = plan.parallel, plan.time, plan.fullest
        cells = [number, parallel.tensor, parallel.pipeline, plan.data_ranks, layout_name(parallel, plan.zero)]
        per_device = time.total * job.gpus
        figures = (
            (time.total, 2),
            (tokens / per_device, 0),
            (100 * useful / per_device / peak_flops, 1),
            (100 * time.bubble / time.total, 1),
            (time.sent / GB, 1),
        )
        static = fullest.static
        sizes = static.weights + static.gradients, static.optimizer, fullest.activations.peak, fullest.total
        rows.append(
            [
                *map(str, cells),
                *(f"{value:,.{digits}f}" for value, digits in figures),
                *(f"{size / GIB:.1f}" for size in sizes),
            ]
        )
    return iter(table(rows))


def rejections(rejected: Sequence[Rejected]) -> Iterator[str]:
    """Reasons for rejection with their layouts; for lack of memory with the memory needed."""
    by_reason: dict[str, list[str]] = {}
    for each in rejected:
        sizes = f"{each.parallel.tensor} x {each.parallel.pipeline} x {each.data_ranks}"
        where = f"{sizes} {layout_name(each.parallel, each.zero)}: {each.needs / GIB:.1f} GiB" if each.needs else sizes
        places = by_reason.setdefault(each.reason, [])
        if where not in places:
            places.append(where)
    for reason, places in by_reason.items():
        yield f"- {reason}:"
        yield from textwrap.wrap("; ".join(places), 116, initial_indent="  ", subsequent_indent="  ")


def stages(job: PlannerJob, plan: Plan) -> Iterator[str]:
    """A line for each stage of a layout: its layers, memory per device, and its share of the compute."""
    rows = [
        [
            "stage",
            "layers",
            "own vision weights",
            "million parameters",
            "weights GiB",
            "gradients",
            "optimizer",
            "a row",
            "rows",
            "activations",
            "peak",
            "TFLOP a row",
            "compute %",
        ]
    ]
    seconds = [job.costs.of(job.model, each.stage, plan.parallel) for each in plan.stages]
    for number, (each, time) in enumerate(zip(plan.stages, seconds), start=1):
        static, activations = each.static, each.activations
        name = f"{number}" + " (embedding)" * each.stage.embedding + " (head)" * each.stage.head
        cells = [
            name,
            str(each.stage.layers),
            str(sum(KINDS[kind].vision_weights != "none" for kind in each.stage.kinds(job.model))),
        ]
        sizes = [static.weights, static.gradients, static.optimizer, activations.kept]
        cells += [f"{static.parameters / 1e6:,.0f}", *(f"{size / GIB:.2f}" for size in sizes), str(activations.rows)]
        cells += [f"{size / GIB:.2f}" for size in (activations.peak, each.total)]
        work = 3 * sum(one_layer_flops(job.model, job.row, kind) for kind in each.stage.kinds(job.model))
        work += 6 * job.model.hidden_size * job.model.vocab_size * job.row.tokens * each.stage.head
        rows.append([*cells, f"{work / plan.parallel.tensor / 1e12:.0f}", f"{100 * time / sum(seconds):.1f}"])
    return iter(table(rows))
