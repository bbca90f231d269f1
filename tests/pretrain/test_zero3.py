"""ZeRO trains as one process of the megatron engine does: losses, gradient norms and weights, from the same first weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pretrain.config import ZeroSection
from pretrain.parallel import ParallelLayout
from tests.parallel_world import World
from tests.pretrain import parallel_jobs, zero3_jobs
from tests.pretrain.test_parallel import FLAVOURS, SEQUENCE, assert_same_training

CUT = {"keep_whole": 0}  # the tiny model has no weight that would not stay whole
CASES = {  # ranks, layout, zero section
    "alone": (1, {}, CUT),
    "zero3 on 2": (2, {}, CUT),
    "zero3 on 4": (4, {}, CUT),
    "norms and biases stay whole": (2, {}, {"keep_whole": 200}),
    "built whole": (2, {}, {**CUT, "init": False}),
    "offload": (2, {}, {**CUT, "offload": True}),
    "recomputed": (2, {"recompute": True}, CUT),
    "zero1 on 2": (2, {}, {"stage": 1}),
    "zero2 on 4": (4, {}, {"stage": 2}),
    "zero1 offload": (2, {}, {"stage": 1, "offload": True}),
    "tp2 x zero3": (4, {"tensor": 2}, {"keep_whole": 200}),
    "tp2 sp x zero3 recomputed": (4, {**SEQUENCE, "recompute": True}, CUT),
    "tp2 x zero2": (4, {"tensor": 2}, {"stage": 2}),
}
BOTH_FLAVOURS = ("zero3 on 2", "tp2 x zero3", "zero2 on 4")  # tied and untied, norms of heads and none


@pytest.fixture(scope="module")
def alone(world: World) -> dict:
    """What one process of the megatron engine does, by flavour."""
    return {name: world.run(parallel_jobs.train, 1, changes=FLAVOURS[name], parallel=ParallelLayout())[0]
            for name in FLAVOURS}  # fmt: skip


@pytest.mark.parametrize(
    "case, flavour", [(case, flavour) for case in CASES for flavour in FLAVOURS
                      if flavour == "untied qwen3" or case in BOTH_FLAVOURS]
)  # fmt: skip
def test_zero_trains_as_one_process(world: World, alone: dict, case: str, flavour: str):
    """Four rows a step, so with two ranks two rows are accumulated; clipping cuts most steps."""
    ranks, parallel, zero = CASES[case]
    found = world.run(zero3_jobs.train, ranks, changes=FLAVOURS[flavour], parallel=ParallelLayout(**parallel),
                      zero=ZeroSection(**zero))  # fmt: skip
    assert_same_training(found, alone[flavour], ranks)
    assert any(step[4] > parallel_jobs.OPTIM.clip_grad for step in alone[flavour][0])
