"""Plans for the DeepSpeed engine: what fits, how much it holds, what it sends, and words that mean what is planned."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from pretrain.config import load_config
from pretrain.planning.expected import expected_memory
from pretrain.planning.layouts import GIB, PlannerJob, plan_layouts
from tests.pretrain.planning.test_layouts import CONFIGS, job_of
from tools.plan_parallel import command_line

ZERO = ["run.engine=zero3", "parallel.distributed_optimizer=false"]


def zero_job(gpus: int, gib: float, *overrides: str, **devices) -> PlannerJob:
    return job_of(load_config(CONFIGS / "pretrain_3b.yaml", [*ZERO, *overrides]), gpus, gib, **devices)


@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_every_plan_is_read_back_and_holds_what_a_run_is_expected_to(gpus):
    job = zero_job(gpus, 100)
    plans, rejected = plan_layouts(job)
    assert len(plans) + len(rejected) >= 9 and {each.zero for each in plans} <= {1, 2, 3}
    for plan in plans:
        words = shlex.split(command_line(plan.parallel, plan.zero))
        config = load_config(CONFIGS / "pretrain_3b.yaml", [*ZERO, *words])
        assert (config.parallel, config.zero.stage) == (plan.parallel, plan.zero)
        assert expected_memory(config, job.model, job.row, plan.data_ranks).total == plan.fullest.total


def test_few_rows_a_device_are_for_stage_3_and_many_for_stage_1():
    """Stages 1 and 2 gather weights when nothing is left to compute, stage 3 for every row."""
    assert plan_layouts(zero_job(8, 72))[0][0].zero == 1
    assert plan_layouts(zero_job(64, 72))[0][0].zero == 3


def test_little_memory_leaves_stage_3_and_says_what_the_others_need():
    plans, rejected = plan_layouts(zero_job(8, 48))
    kept = [each for each in plans if not (each.parallel.recompute or each.parallel.recompute_cheap)]
    assert {each.zero for each in kept if each.parallel.tensor == 1} == {3}
    assert any(each.zero == 1 and each.needs > 48 * GIB for each in rejected)


def test_a_slow_network_is_met_inside_of_a_node():
    """With weights cut again inside of a node the backward pass gathers there; without overlap nothing is hidden."""
    slow = {"between": 2e9}
    times = {
        name: next(
            plan.time
            for plan in plan_layouts(zero_job(64, 72, *words, **slow))[0]
            if plan.zero == 3 and plan.parallel.tensor == 1 and not plan.parallel.recompute_cheap
        )
        for name, words in {
            "plain": [],
            "node": ["zero.hpz_partition_size=8"],
            "bf16": ["parallel.gradients=bf16"],
            "bare": ["parallel.overlap=false"],
        }.items()
    }
    assert times["node"].data < times["plain"].data < times["bare"].data and times["bare"].hidden == 0
    assert times["bf16"].data < times["plain"].data and times["bf16"].sent < times["plain"].sent


def test_hidden_sends_are_paid_in_processors():
    costs = [
        next(plan.time for plan in plan_layouts(zero_job(8, 72, contention=share))[0] if plan.zero == 2)
        for share in (0.0, 0.5)
    ]
    assert costs[1].compute - costs[0].compute == pytest.approx(0.5 * costs[0].hidden)
    assert dataclasses.replace(costs[1], compute=costs[0].compute) == costs[0]
