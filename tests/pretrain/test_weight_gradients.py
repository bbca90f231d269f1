"""Linear layers that add their weights' gradients to the buffers themselves: the same sums, whoever reads them."""

from __future__ import annotations

import dataclasses
from unittest.mock import patch

import pytest
import torch

from model import gpu_kernels
from pretrain.conflict.blocks import BlockSizes, share_out
from pretrain.conflict.gradients import gram_matrices, matrices
from pretrain.engines import gradient_sums
from pretrain.parallel import ParallelLayout
from tests.parallel_world import World
from tests.pretrain import parallel_jobs
from tests.pretrain.test_parallel import SEQUENCE

LAYOUTS = {
    "one": (1, {}),
    "recomputed": (1, {"recompute": True}),
    "dp2 distributed": (2, {"distributed_optimizer": True, "overlap": True}),
    "tp2 sp": (2, SEQUENCE),
    "pp2": (2, {"pipeline": 2}),
}
FROZEN = dataclasses.replace(parallel_jobs.OPTIM, freeze=["decoder.layers.*.text.*"])


def assert_same(ours: tuple, theirs: tuple) -> None:
    (steps, measured, weights), (expected, measured_there, weights_there) = ours, theirs
    assert (steps, measured) == (expected, measured_there)
    for name, tensor in weights.items():
        assert torch.equal(tensor, weights_there[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_the_same_to_the_last_bit(world: World, layout: str):
    """On a CPU a product is rounded to bfloat16 before it is added in either case; each gradient is added once."""
    ranks, switches = LAYOUTS[layout]
    parallel = ParallelLayout(**switches)
    found = world.run(parallel_jobs.train_adding_in_products, ranks, parallel=parallel)
    expected = world.run(parallel_jobs.train, ranks, changes={}, parallel=parallel, precision="bf16")
    for (ours, calls), theirs in zip(found, expected, strict=True):
        assert calls > 0
        assert_same(ours, theirs)


def test_sums_in_bfloat16_of_a_row_are_the_same_and_of_more_are_rounded_less(world: World):
    """A row's product is the sum; of four rows each product is added before it is rounded."""
    parallel = ParallelLayout(gradients="bf16", distributed_optimizer=True)
    for ranks in (parallel_jobs.ROWS, 1):
        (ours, calls), *_ = world.run(parallel_jobs.train_adding_in_products, ranks, parallel=parallel)
        theirs, *_ = world.run(parallel_jobs.train, ranks, changes={}, parallel=parallel, precision="bf16")
        assert calls > 0
        if ranks > 1:
            assert_same(ours, theirs)
        else:
            losses, expected = ([figures[0] for figures in found[0]] for found in (ours, theirs))
            assert losses == pytest.approx(expected, rel=1e-2) and losses != expected


def test_a_weight_without_a_gradient_is_no_silent_one():
    left = torch.ones(2, 3)
    gradient_sums.check_written([left])
    left.overwritten = True
    with pytest.raises(RuntimeError, match=r"1 weights got no gradient in a step, the first of shape \[2, 3\]"):
        gradient_sums.check_written([left])


def test_frozen_weights_stay_as_they_are(world: World):
    ((ours, calls),) = world.run(parallel_jobs.train_adding_in_products, 1, parallel=ParallelLayout(), optim=FROZEN)
    (theirs,) = world.run(parallel_jobs.train, 1, changes={}, parallel=ParallelLayout(), optim=FROZEN, precision="bf16")
    assert calls > 0
    assert_same(ours, theirs)


def test_it_is_left_where_megatron_core_would_lose_a_gradient(world: World):
    ((_, calls),) = world.run(parallel_jobs.train_adding_in_products, 1, parallel=ParallelLayout(recompute_cheap=True))
    assert calls == 0


def test_float32_weights_are_not_asked(world: World):
    with patch.object(gpu_kernels, "weight_gradients_add", side_effect=AssertionError):
        parallel_jobs.make_engine({}, ParallelLayout())


def test_conflict_is_measured_on_gradients_that_are_returned():
    """The layers of an engine return memory that nothing was written to, were they not asked for the gradients."""
    grams = []
    for adds in (lambda *_: False, parallel_jobs._weight_gradients_add):
        with patch.object(gpu_kernels, "weight_gradients_add", adds):
            engine = parallel_jobs.make_engine({}, ParallelLayout(), precision="bf16")
        model, config = engine.stages[0].eval(), engine.model_config
        sizes = BlockSizes(4, 4)
        shares = share_out(parallel_jobs.mixed_rows(config), config.vocabulary, sizes)
        switched = [each for each in model.modules() if getattr(each, "gradient_accumulation_fusion", False)]
        grams.append(dict(gram_matrices(model, config, shares, sizes, list(matrices(model)))))
        assert all(each.gradient_accumulation_fusion for each in switched)
    assert switched and grams[0].keys() == grams[1].keys()
    for name, gram in grams[0].items():
        assert torch.equal(gram, grams[1][name]), name
