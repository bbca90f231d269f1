"""What the ranks of a layout write to a checkpoint: each element of each tensor once, whichever ranks hold it."""

from __future__ import annotations

import pytest
import torch

from model.weight_names import training_names
from pretrain.config import ZeroSection
from pretrain.parallel import ParallelLayout
from tests.model.tiny_training import training_config
from tests.parallel_world import World
from tests.pretrain import parallel_jobs, zero3_jobs
from tests.pretrain.test_parallel import FLAVOURS, SEQUENCE, TIED, UNTIED

CASES = {  # ranks, layout, zero section or None for the other engine, flavour
    "tp2 sp dp2": (4, SEQUENCE, None, UNTIED),
    "pp2 dp2": (4, {"pipeline": 2}, None, TIED),  # the last stage has a copy of the embedding
    "tp2 pp2": (4, {"tensor": 2, "pipeline": 2}, None, TIED),
    "pp2 dp2 distributed optimizer": (4, {"pipeline": 2, "distributed_optimizer": True}, None, TIED),
    "tp2 dp2 distributed optimizer": (4, {"tensor": 2, "distributed_optimizer": True}, None, UNTIED),
    "zero3 on 3": (3, {}, {"param_persistence_threshold": 0}, UNTIED),
    "tp2 x zero3": (4, {"tensor": 2}, {"param_persistence_threshold": 200}, UNTIED),
    "tp2 x zero2": (4, {"tensor": 2}, {"stage": 2}, TIED),
}


@pytest.mark.parametrize("case", CASES)
def test_each_element_is_written_once(world: World, case: str):
    ranks, layout, zero, flavour = CASES[case]
    job = {"changes": FLAVOURS[flavour], "parallel": ParallelLayout(**layout), "precision": "bf16"}
    if zero is None:
        found = world.run(parallel_jobs.written_boxes, ranks, **job)
    else:
        found = world.run(zero3_jobs.written_boxes, ranks, zero=ZeroSection(**zero), **job)
    times: dict[str, torch.Tensor] = {}
    for key, whole, offsets, shape in (box for boxes in found for box in boxes):
        place = tuple(slice(first, first + size) for first, size in zip(offsets, shape, strict=True))
        times.setdefault(key, torch.zeros(whole))[place] += 1
    names = training_names(training_config(**FLAVOURS[flavour]))
    kinds = ("", "optimizer.exp_avg.", "optimizer.exp_avg_sq.", "optimizer.master.")
    assert times.keys() == {f"{kind}{name}" for kind in kinds for name in names}
    assert {key for key, count in times.items() if not (count == 1).all()} == set()
