"""Planned layouts: accepted by what reads them, cut as well as can be, and refused with reasons that are true."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import TrainConfig, load_config
from pretrain.parallel import ParallelLayout, check_layout, stage_layers
from pretrain.planning.activations import RowShape
from pretrain.planning.cost import Devices, PartCosts, counted_costs, tensor_bytes
from pretrain.planning.cuts import balance, layout_string, stages_of
from pretrain.planning.layouts import GIB, Plan, PlannerJob, candidates, memory_of_stages, plan_layouts, plan_one
from pretrain.planning.memory import PipelineStage
from pretrain.process_ranks import check_world
from pretrain.setup import sized_config
from pretrain.system.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "pretrain/configs"


def job_of(config: TrainConfig, gpus: int, gib: float, **devices) -> PlannerJob:
    model = sized_config(config.model, 151_936, 8_192, (0, 1, 2))
    text = config.data.sequence_length // 2
    row = RowShape(config.data.sequence_length, 1, text, config.data.sequence_length - text)
    made = Devices(**devices)
    return PlannerJob(config, model, row, gpus, int(gib * GIB), made, counted_costs(model, row, made))


@pytest.fixture(scope="module")
def base() -> TrainConfig:
    return load_config(CONFIGS / "pretrain_3b.yaml")


SIZES = st.fixed_dictionaries(
    {
        "num_key_value_heads": st.sampled_from([1, 2, 4]),
        "num_hidden_layers": st.integers(1, 20),
        "shallow": st.integers(0, 7),
        "deep": st.integers(0, 5),
        "tie_word_embeddings": st.booleans(),
        "flavour": st.sampled_from(["qwen2.5", "qwen3"]),
    }
)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 24), st.floats(1, 60), st.integers(1, 24), st.sampled_from(["fp32", "bf16"]))
def test_every_planned_layout_is_read_back_and_covers_every_layer_once(base, sizes, gpus, gib, rows, precision):
    layers = sizes["num_hidden_layers"]
    sizes["shallow"] = min(sizes["shallow"], layers)
    sizes["deep"] = min(sizes["deep"], layers - sizes["shallow"])
    config = dataclasses.replace(
        base,
        run=dataclasses.replace(base.run, precision=precision),
        model=dataclasses.replace(base.model, num_attention_heads=4, **sizes),
        data=dataclasses.replace(base.data, global_batch_size=rows, sequence_length=1024, heldout=""),
    )
    job = job_of(config, gpus, gib)
    plans, rejected = plan_layouts(job)
    assert len(plans) + len(rejected) == len(list(candidates(gpus)))
    assert [plan.time.total for plan in plans] == sorted(plan.time.total for plan in plans)
    for plan in plans:
        check_layout(plan.parallel, job.model)
        assert check_world(dataclasses.replace(config, parallel=plan.parallel), gpus) == plan.data_ranks
        written = stage_layers(plan.parallel.layout, plan.parallel.pipeline, layers)
        assert written == [each.stage.written for each in plan.stages] and len(written) == plan.parallel.pipeline
        covered = [
            layer for each in plan.stages for layer in range(each.stage.first, each.stage.first + each.stage.layers)
        ]
        assert covered == list(range(layers))
        assert all(each.total <= job.usable for each in plan.stages)
        assert plan.time.bubble >= 0 and plan.time.total > plan.time.compute > 0
    for other in rejected:
        assert other.needs > job.usable or not other.needs


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.integers(1, 4),
    st.integers(0, 20),
    st.integers(0, 9),
    st.integers(5, 80),
)
def test_a_cut_is_the_best_of_all_cuts(costs, pipeline, head, embedding, limit):
    """Against every cut tried one by one: the fastest slowest stage, and of those the least memory, in MiB."""
    layers, mebibyte = len(costs), 2**20

    def seconds(place: int, first: int, count: int) -> float:
        return sum(costs[first : first + count]) + head * (place == pipeline - 1)

    def memory(place: int, first: int, count: int) -> float:  # earlier stages hold more rows
        return mebibyte * (count * (1 + pipeline - place) + embedding * (place == 0))

    def worst(counts, measure) -> float:
        return max(measure(place, sum(counts[:place]), count) for place, count in enumerate(counts))

    possible = [
        counts
        for counts in itertools.product(range(layers + 1), repeat=pipeline)
        if sum(counts) == layers and all(counts[1:-1]) and worst(counts, memory) <= limit * mebibyte
    ]
    found = balance(layers, pipeline, seconds, memory, limit * mebibyte)
    if not possible:
        assert found is None
        return
    best = min((worst(counts, seconds), worst(counts, memory)) for counts in possible)
    assert (worst(found, seconds), worst(found, memory)) == best


def test_stages_are_balanced_by_cost_not_by_number(base):
    """The head of the 3B is worth more than three layers, so the last stage has that many fewer than the fullest."""
    plan = plan_one(job_of(base, 4, 200), ParallelLayout(pipeline=4), 1)
    counts = [each.stage.layers for each in plan.stages]
    assert sum(counts) == 36 and counts[-1] <= max(counts[:-1]) - 3
    assert plan.parallel.layout == layout_string(stages_of(counts)) and plan.parallel.layout.startswith("Et")


def test_memory_moves_layers_off_the_stages_that_hold_most_rows(base):
    """With room to spare the cut is by time alone; with little, early stages, which hold more rows, get fewer layers."""
    roomy = plan_one(job_of(base, 4, 400), ParallelLayout(pipeline=4), 1)
    tight = plan_one(job_of(base, 4, 0.9 * roomy.fullest.total / GIB), ParallelLayout(pipeline=4), 1)
    assert isinstance(tight, Plan) and tight.fullest.total < roomy.fullest.total
    assert tight.stages[0].stage.layers < roomy.stages[0].stage.layers and tight.time.total > roomy.time.total


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"tensor": 2},
        {"tensor": 2, "sequence": True, "pipeline": 2},
        {"pipeline": 4, "recompute": True},
        {"distributed_optimizer": True},
    ],
)
def test_the_quick_count_of_memory_is_the_exact_one_but_for_padding(base, switches):
    parallel = ParallelLayout(**switches)
    job, ranks = job_of(base, 8, 1000), 8 // parallel.tensor // parallel.pipeline
    plan = plan_one(job, parallel, ranks)
    quick = memory_of_stages(job, parallel, ranks, 64 // ranks)
    for place, each in enumerate(plan.stages):
        assert quick(place, each.stage.first, each.stage.layers) == pytest.approx(each.total, abs=2**20)


def test_reasons_are_those_that_training_would_give(base):
    job = job_of(base, 12, 300)
    _, rejected = plan_layouts(job)
    reasons = {(each.parallel.tensor, each.parallel.pipeline): each.reason for each in rejected}
    for (tensor, pipeline), reason in reasons.items():
        parallel = ParallelLayout(tensor=tensor, pipeline=pipeline)
        if tensor > 8:
            assert reason == "12 tensor-parallel ranks do not fit in a node of 8 devices"
            continue
        with pytest.raises(UserError) as caught:
            check_layout(parallel, job.model)
            check_world(dataclasses.replace(base, parallel=parallel), 12)
        assert str(caught.value) == reason
    assert "data.global_batch_size 64 is not divisible by 12" in reasons[1, 1]
    assert "num_attention_heads 16 is not divisible by 3" in reasons[3, 1] and "num_key_value_heads" in reasons[4, 1]


def test_a_layout_that_lacks_memory_fits_where_it_says_it_would(base):
    """The need that is told is enough, with the stages that are told, and a little less is not."""
    parallel = ParallelLayout(pipeline=4, recompute=True)
    needs = plan_one(job_of(base, 4, 5), parallel, 1).needs
    assert isinstance(plan_one(job_of(base, 4, needs / GIB + 0.01), parallel, 1), Plan)
    assert not isinstance(plan_one(job_of(base, 4, needs / GIB - 0.01), parallel, 1), Plan)


def test_tensor_parallel_traffic_counts_the_changes_of_order_once_each(base):
    model = sized_config(base.model, 151_936, 8_192, (0, 1, 2))
    row, whole = RowShape(10_240, 9, 64, 1_025), PipelineStage(0, 36, True, True)
    activation = 10_240 * 2_048 * 2
    sent = {
        sequence: tensor_bytes(model, whole, row, ParallelLayout(tensor=2, sequence=sequence), 2) / (activation / 2)
        for sequence in (False, True)
    }
    assert sent == {False: 36 * 8 + 4, True: 36 * 8 + 4 + 2 * 2}
    assert tensor_bytes(model, whole, row, ParallelLayout(), 2) == 0


def test_a_pipelines_bubble_is_what_stages_wait(base):
    """Equal stages: the textbook's (p - 1) of m + p - 1 slots."""
    job = job_of(base, 4, 400)
    even = PartCosts(dict.fromkeys(("separated", "shared"), 1.0), 0.0, 0.0)
    plan = plan_one(dataclasses.replace(job, costs=even), ParallelLayout(pipeline=4), 1)
    assert [each.stage.layers for each in plan.stages] == [9] * 4
    assert plan.time.bubble / (plan.time.compute + plan.time.bubble) == pytest.approx(3 / (64 + 3))
