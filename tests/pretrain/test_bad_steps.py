"""A step that is no good moves nothing: weights, moments and the steps after it are those of a run without it."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.config import ZeroSection
from pretrain.parallel import ParallelLayout
from tests.parallel_world import World
from tests.pretrain import parallel_jobs, zero3_jobs

ENGINES = {
    "megatron fp32": (parallel_jobs.train_megatron_past_a_bad_step, "fp32", {"parallel": ParallelLayout()}),
    "megatron tp2 bf16": (parallel_jobs.train_megatron_past_a_bad_step, "bf16", {"parallel": ParallelLayout(tensor=2)}),
    "megatron distributed optimizer": (
        parallel_jobs.train_megatron_past_a_bad_step,
        "bf16",
        {"parallel": ParallelLayout(distributed_optimizer=True)},
    ),
    "zero3 bf16": (
        zero3_jobs.train_zero_past_a_bad_step,
        "bf16",
        {"zero": ZeroSection(param_persistence_threshold=200)},
    ),
    "zero3 fp32 offload": (
        zero3_jobs.train_zero_past_a_bad_step,
        "fp32",
        {"zero": ZeroSection(param_persistence_threshold=0, offload=True)},
    ),
    "zero2 bf16": (zero3_jobs.train_zero_past_a_bad_step, "bf16", {"zero": ZeroSection(stage=2)}),
    "zero1 bf16": (zero3_jobs.train_zero_past_a_bad_step, "bf16", {"zero": ZeroSection(stage=1)}),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_step_moves_nothing(world: World, engine: str):
    job, precision, arguments = ENGINES[engine]
    expected = world.run(job, 2, precision=precision, kind="none", **arguments)
    for kind in ("refused", "gradient"):
        found = world.run(job, 2, precision=precision, kind=kind, **arguments)
        for (bad, figures, pieces), (_, expected_figures, expected_pieces) in zip(found, expected, strict=True):
            *losses, norm, updated = bad
            assert not updated and all(map(math.isfinite, losses))
            assert kind == "refused" or not math.isfinite(norm)
            assert figures == expected_figures and all(step[-1] for step in figures)
            assert pieces.keys() == expected_pieces.keys()
            assert all(torch.equal(tensor, expected_pieces[place]) for place, tensor in pieces.items())
