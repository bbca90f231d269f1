"""Every layout trains as one process does: losses, gradient norms and weights, from one set of first weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pretrain.parallel import ParallelLayout
from tests.model.tiny_hf import QWEN3, QWEN25
from tests.parallel_world import World
from tests.pretrain import parallel_jobs

KINDS = ("separated", "separated", "shared", "shared", "separated", "separated")
FLAVOURS = {
    "tied qwen2.5": {"layer_kinds": KINDS, "tie_word_embeddings": True, **QWEN25},
    "untied qwen3": {"layer_kinds": KINDS, "tie_word_embeddings": False, **QWEN3},
}
CROSSED = {
    "untied qwen2.5": {"layer_kinds": KINDS, "tie_word_embeddings": False, **QWEN25},
    "tied qwen3": {"layer_kinds": KINDS, "tie_word_embeddings": True, **QWEN3},
}
SEQUENCE = {"tensor": 2, "sequence": True}
TIED, UNTIED = FLAVOURS
BOTH = (TIED, UNTIED)
LAYOUTS = {
    "tp2": (2, {"tensor": 2}),
    "tp2 sp": (2, SEQUENCE),
    "pp2": (2, {"pipeline": 2}),
    "pp4": (4, {"pipeline": 4}),
    "pp2 interleaved": (2, {"pipeline": 2, "layout": "Et|tt|tt|tL"}),
    "tp2 sp pp2": (4, {**SEQUENCE, "pipeline": 2}),
    "tp2 sp pp2 interleaved": (4, {**SEQUENCE, "pipeline": 2, "layout": "Ett|tt|t|tL"}),
    "dp2": (2, {}),
    "dp2 distributed optimizer": (2, {"distributed_optimizer": True}),
    "tp2 dp2": (4, {"tensor": 2}),
    "tp2 sp dp2 distributed optimizer": (4, {**SEQUENCE, "distributed_optimizer": True}),
    "cut inside the first block": (2, {"pipeline": 2, "layout": "Et|tttttL"}),
    "cut at the end of the first block": (2, {"pipeline": 2, "layout": "Ett|ttttL"}),
    "cut inside the last block, an empty stage": (4, {"pipeline": 4, "layout": "E|ttttt||tL"}),
    "embedding and head alone": (4, {"pipeline": 4, "layout": "E|ttt|ttt|L"}),
    "tp2 sp recomputed": (2, {**SEQUENCE, "recompute": True}),
    "pp2 recomputed": (2, {"pipeline": 2, "recompute": True}),
}
TRAINED_IN = {  # in which flavours a layout is compared: where ends are cut apart a tied embedding has two copies, and where
    # heads are cut apart each rank has a part of the gradient of the norms on them, or of the biases. Both flavours for the
    # plainest cut of each kind and for what puts cuts together; of a variant the flavour that it is more likely to break.
    "tp2": (UNTIED,),
    "tp2 sp": BOTH,
    "pp2": BOTH,
    "pp4": (TIED,),
    "pp2 interleaved": (TIED,),
    "tp2 sp pp2": BOTH,  # and in the two flavours that are crossed
    "tp2 sp pp2 interleaved": (UNTIED,),
    "dp2": (TIED,),
    "dp2 distributed optimizer": (UNTIED,),
    "tp2 dp2": (TIED,),
    "tp2 sp dp2 distributed optimizer": (UNTIED,),  # tests/pretrain/test_overlap.py has the other
    "cut inside the first block": (UNTIED,),
    "cut at the end of the first block": (TIED,),
    "cut inside the last block, an empty stage": (UNTIED,),
    "embedding and head alone": (TIED,),
    "tp2 sp recomputed": (UNTIED,),
    "pp2 recomputed": (TIED,),
}


@pytest.fixture(scope="module")
def alone(world: World) -> dict:
    """What one process does, by flavour."""
    return {
        name: world.run(parallel_jobs.train, 1, changes=FLAVOURS[name], parallel=ParallelLayout())[0]
        for name in FLAVOURS
    }


def assert_same_training(found: list, expected: tuple, ranks: int) -> None:
    steps, measured, weights = expected
    assert len(found) == ranks
    for other_steps, other_measured, other_weights in found:
        for step, (here, there) in enumerate(zip([*steps, measured], [*other_steps, other_measured], strict=True)):
            for tokens in (2, 3):
                assert here[tokens] == there[tokens]
            for loss, count in ((0, 2), (1, 3)):  # sums, as means
                assert abs(here[loss] - there[loss]) <= 5e-6 * max(1, here[count]), f"step {step}: {here} and {there}"
            assert there[4] == pytest.approx(here[4], rel=5e-6), f"step {step}"
        assert other_weights.keys() == weights.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(
                other_weights[name], tensor, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("layout, flavour", [(layout, flavour) for layout in LAYOUTS for flavour in TRAINED_IN[layout]])
def test_a_layout_trains_as_one_process(world: World, alone: dict, layout: str, flavour: str):
    ranks, parallel = LAYOUTS[layout]
    found = world.run(parallel_jobs.train, ranks, changes=FLAVOURS[flavour], parallel=ParallelLayout(**parallel))
    assert_same_training(found, alone[flavour], ranks)


@pytest.mark.parametrize("flavour", CROSSED)
def test_tying_and_flavour_do_not_depend_on_each_other(world: World, flavour: str):
    """The other two of the four, in the layout that has everything: tensor, sequence and pipeline parallelism."""
    expected = world.run(parallel_jobs.train, 1, changes=CROSSED[flavour], parallel=ParallelLayout())[0]
    ranks, parallel = LAYOUTS["tp2 sp pp2"]
    found = world.run(parallel_jobs.train, ranks, changes=CROSSED[flavour], parallel=ParallelLayout(**parallel))
    assert_same_training(found, expected, ranks)


DROPOUT = dataclasses.replace(parallel_jobs.OPTIM, dropout=0.2)
BASELINES = {
    "mot": {"layer_kinds": ("mot",) * 4, "tie_word_embeddings": True, **QWEN25},
    "moe_hard": {"layer_kinds": ("moe_hard", "shared", "shared", "moe_hard"), "tie_word_embeddings": False, **QWEN3},
    "all four kinds": {
        "layer_kinds": ("mot", "shared", "moe_hard", "separated"),
        "tie_word_embeddings": False,
        **QWEN3,
    },
}


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_baselines_train_in_layouts_as_in_one_process(world: World, baseline: str):
    changes = BASELINES[baseline]
    expected = world.run(parallel_jobs.train, 1, changes=changes, parallel=ParallelLayout())[0]
    for layout in ("tp2 sp", "pp2 recomputed", *(["tp2 sp pp2"] if baseline == "all four kinds" else [])):
        ranks, parallel = LAYOUTS[layout]
        found = world.run(parallel_jobs.train, ranks, changes=changes, parallel=ParallelLayout(**parallel))
        assert_same_training(found, expected, ranks)


def test_what_the_baselines_leave_out_does_not_depend_on_the_layout(world: World):
    changes = BASELINES["all four kinds"]
    expected = world.run(parallel_jobs.train, 1, changes=changes, parallel=ParallelLayout(), optim=DROPOUT)[0]
    for layout in ("tp2", "pp2 recomputed"):
        ranks, parallel = LAYOUTS[layout]
        job = {"changes": changes, "parallel": ParallelLayout(**parallel), "optim": DROPOUT}
        assert_same_training(world.run(parallel_jobs.train, ranks, **job), expected, ranks)


def test_training_moves_the_weights(alone: dict):
    """So that equal weights say something."""
    figures, _, weights = alone["tied qwen2.5"]
    assert all(step[2] > 20 and step[3] > 20 and step[4] > 0.1 for step in figures)
    assert figures[-1] != figures[0] and all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("distributed", [False, True])
def test_text_on_one_rank_and_pictures_on_another(world: World, distributed: bool):
    """Nobody waits for a branch that a rank's rows do not use, and the gradients are those of all rows together."""
    job = parallel_jobs.train_on_text_beside_pictures
    *expected, gradients = world.run(job, 1, parallel=ParallelLayout())[0]
    found = world.run(job, 2, seconds=300, parallel=ParallelLayout(distributed_optimizer=distributed))
    assert_same_training([rank[:3] for rank in found], tuple(expected), 2)
    if not distributed:  # with it, each rank keeps the sums of its own share only
        for _, _, _, others in found:
            assert all(torch.allclose(ours, theirs, atol=1e-6, rtol=1e-4) for ours, theirs in zip(gradients, others))


@pytest.fixture(scope="module")
def left_out_alone(world: World) -> tuple:
    """What one process does that leaves something out."""
    return world.run(parallel_jobs.train, 1, changes=FLAVOURS[UNTIED], parallel=ParallelLayout(), optim=DROPOUT)[0]


@pytest.mark.parametrize(
    "layout", ["pp2", "pp2 interleaved", "tp2", "dp2", "pp2 recomputed", "cut inside the first block"]
)
def test_what_is_left_out_does_not_depend_on_the_layout(world: World, left_out_alone: tuple, layout: str):
    ranks, parallel = LAYOUTS[layout]
    job = {"changes": FLAVOURS[UNTIED], "parallel": ParallelLayout(**parallel), "optim": DROPOUT}
    assert_same_training(world.run(parallel_jobs.train, ranks, **job), left_out_alone, ranks)


def test_recomputing_leaves_out_the_same_with_sequence_parallelism(world: World):
    """There each rank draws for its own tokens, so one process is no reference: the layout itself is, whatever was drawn before."""
    first, again = (
        world.run(
            parallel_jobs.train,
            2,
            changes=FLAVOURS["untied qwen3"],
            parallel=ParallelLayout(**SEQUENCE, recompute=recompute),
            optim=DROPOUT,
            steps=1,
            drawn_before=7 * recompute,
        )
        for recompute in (False, True)
    )
    assert first[0][:2] == again[0][:2]
    assert all(torch.equal(tensor, again[0][2][name]) for name, tensor in first[0][2].items())


def test_a_job_that_fails_or_hangs_is_seen():
    made = World(2)
    try:
        with pytest.raises(AssertionError, match="the last rank has failed"):
            made.run(parallel_jobs.fail_on_the_last_rank, 2)
        with pytest.raises(AssertionError, match="no answer in 1 s"):
            made.run(parallel_jobs.hang, 1, seconds=1, duration=5.0)
    finally:
        made.close()
