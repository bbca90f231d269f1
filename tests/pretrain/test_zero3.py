"""ZeRO trains as one process of the megatron engine does: losses, gradient norms and weights, from equal first weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pretrain.config import ZeroSection
from pretrain.parallel import ParallelLayout
from tests.model.tiny_hf import QWEN3, QWEN25
from tests.parallel_world import World
from tests.pretrain import parallel_jobs, zero3_jobs
from tests.pretrain.test_parallel import SEQUENCE, assert_same_training

KINDS = ("separated", "shared", "separated")
FLAVOURS = {
    "tied qwen2.5": {"layer_kinds": KINDS, "tie_word_embeddings": True, **QWEN25},
    "untied qwen3": {"layer_kinds": KINDS, "tie_word_embeddings": False, **QWEN3},
}
STEPS = parallel_jobs.TRAINED
CUT = {"param_persistence_threshold": 0}  # the tiny model has no weight that would not stay whole
CASES = {  # ranks, layout, zero section
    "alone": (1, {}, CUT),
    "zero3 on 2": (2, {}, CUT),
    "zero3 on 4": (4, {}, CUT),
    "norms and biases stay whole": (2, {}, {"param_persistence_threshold": 200}),
    "built whole": (2, {}, {**CUT, "init": False}),
    "offload": (2, {}, {**CUT, "offload": True}),
    "recomputed": (2, {"recompute": True}, CUT),
    "zero1 on 2": (2, {}, {"stage": 1}),
    "zero2 on 4": (4, {}, {"stage": 2}),
    "zero1 offload": (2, {}, {"stage": 1, "offload": True}),
    "tp2 x zero3": (4, {"tensor": 2}, {"param_persistence_threshold": 200}),
    "tp2 sp x zero3 recomputed": (4, {**SEQUENCE, "recompute": True}, CUT),
    "weights cut again inside of a node": (4, {}, {**CUT, "hpz_partition_size": 2}),
    "cheap parts again": (2, {"recompute_cheap": True}, CUT),
    "tp2 x zero2": (4, {"tensor": 2}, {"stage": 2}),
}
BOTH_FLAVOURS = ("zero3 on 2", "tp2 x zero3")  # tied and untied, norms of heads and none


@pytest.fixture(scope="module")
def alone(world: World) -> dict:
    """What one process of the megatron engine does, by flavour."""
    return {
        name: world.run(parallel_jobs.train, 1, changes=FLAVOURS[name], parallel=ParallelLayout(), steps=STEPS)[0]
        for name in FLAVOURS
    }


@pytest.mark.parametrize(
    "case, flavour",
    [(case, flavour) for case in CASES for flavour in FLAVOURS if flavour == "untied qwen3" or case in BOTH_FLAVOURS],
)
def test_zero_trains_as_one_process(world: World, alone: dict, case: str, flavour: str):
    """Four rows a step, so with two ranks two rows are accumulated; clipping cuts most steps."""
    ranks, parallel, zero = CASES[case]
    found = world.run(
        zero3_jobs.train,
        ranks,
        changes=FLAVOURS[flavour],
        parallel=ParallelLayout(**parallel),
        zero=ZeroSection(**zero),
        steps=STEPS,
    )
    assert_same_training(found, alone[flavour], ranks)
    assert any(step[4] > parallel_jobs.OPTIM.clip_grad for step in alone[flavour][0])


@pytest.mark.parametrize("stage", [1, 3])
def test_zero_leaves_embeddings_out_of_the_decay_as_one_process_does(world: World, stage: int):
    optim = dataclasses.replace(parallel_jobs.OPTIM, weight_decay=50.0, decay_embeddings=False)
    options = {"changes": FLAVOURS["untied qwen3"], "parallel": ParallelLayout(), "steps": 2, "optim": optim}
    expected = world.run(parallel_jobs.train, 1, **options)[0]
    zero = ZeroSection(**CUT) if stage == 3 else ZeroSection(stage=stage)
    assert_same_training(world.run(zero3_jobs.train, 2, zero=zero, **options), expected, 2)


def test_zero_weighs_the_loss_of_pictures_as_one_process_does(world: World, alone: dict):
    options = {
        "changes": FLAVOURS["untied qwen3"],
        "parallel": ParallelLayout(),
        "steps": 2,
        "optim": dataclasses.replace(parallel_jobs.OPTIM, image_loss_weight=0.1),
    }
    expected = world.run(parallel_jobs.train, 1, **options)[0]
    assert_same_training(world.run(zero3_jobs.train, 2, zero=ZeroSection(**CUT), **options), expected, 2)
    assert expected[0] != alone["untied qwen3"][0][:2]


IN_BF16 = {"changes": FLAVOURS["untied qwen3"], "parallel": ParallelLayout(), "precision": "bf16", "steps": STEPS}


@pytest.fixture(scope="module")
def alone_in_bf16(world: World) -> list:
    """The steps of one process of the megatron engine."""
    return world.run(parallel_jobs.train, 1, **IN_BF16)[0][0]


@pytest.mark.parametrize("ranks, zero", [(2, CUT), (2, {"stage": 1}), (4, {"stage": 2})], ids=str)
def test_zero_trains_as_one_process_in_bf16(world: World, alone_in_bf16: list, ranks: int, zero: dict):
    """float32 master weights: losses and gradient norms within 1e-3 of the other engine's."""
    for steps, _, weights in world.run(zero3_jobs.train, ranks, zero=ZeroSection(**zero), **IN_BF16):
        assert all(tensor.dtype == torch.bfloat16 for tensor in weights.values())
        for here, there in zip(alone_in_bf16, steps, strict=True):
            assert here[2:4] == there[2:4]
            loss, other = ((step[0] + step[1]) / (step[2] + step[3]) for step in (here, there))
            assert other == pytest.approx(loss, abs=1e-3) and there[4] == pytest.approx(here[4], rel=1e-3)


def test_cut_as_made_is_the_same_model(world: World):
    """zero.Init changes nothing but memory: to the last bit."""
    made, built = (
        world.run(
            zero3_jobs.train,
            2,
            changes=FLAVOURS["tied qwen2.5"],
            parallel=ParallelLayout(),
            steps=1,
            precision="bf16",
            zero=ZeroSection(**CUT, init=init),
        )[0]
        for init in (True, False)
    )
    assert made[:2] == built[:2]
    assert all(torch.equal(tensor, built[2][name]) for name, tensor in made[2].items())


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_precision_is_the_one_of_the_run_on_any_processor(world: World, precision: str, dtype: torch.dtype):
    """DeepSpeed 0.19.8 made float32 bfloat16 where fp16 is not there: on every AMD processor, and on older Intel ones."""
    for fp16 in (True, False):
        found = world.run(zero3_jobs.precision_of_weights, 1, zero=ZeroSection(**CUT), precision=precision, fp16=fp16)
        assert found == [{dtype}]


def test_no_rank_holds_the_model(world: World):
    """Cut over 3 ranks, which divide few weights: a third each, rounded up by weight, and not what fills it up."""
    found = world.run(zero3_jobs.elements_on_a_rank, 3, zero=ZeroSection(**CUT))
    whole = found[0][0]
    assert sum(held for _, held in found) == whole
    assert all(held < 0.35 * whole for _, held in found)


@pytest.mark.parametrize("zero", [CUT, {"stage": 1}], ids=str)
def test_cheap_parts_are_forgotten_until_the_backward_pass(world: World, zero: dict):
    for again in (False, True):
        layout = ParallelLayout(recompute_cheap=again)
        for outputs, kept in world.run(zero3_jobs.outputs_kept, 2, parallel=layout, zero=ZeroSection(**zero)):
            assert outputs > 10 and (kept == 0 if again else kept > outputs / 2)


@pytest.mark.parametrize("ranks, zero", [(4, CUT), (2, {"stage": 2})], ids=str)
def test_text_on_some_ranks_and_pictures_on_others(world: World, ranks: int, zero: dict):
    """Every weight is gathered on every rank, whatever its row holds: nobody waits for ever."""
    *expected, _ = world.run(parallel_jobs.train_on_text_beside_pictures, 1, parallel=ParallelLayout())[0]
    found = world.run(zero3_jobs.train_on_text_beside_pictures, ranks, seconds=300, zero=ZeroSection(**zero))
    assert_same_training(found, tuple(expected), ranks)


def test_what_is_left_out_is_that_of_one_process(world: World):
    optim = dataclasses.replace(parallel_jobs.OPTIM, dropout=0.2)
    changes = FLAVOURS["untied qwen3"]
    expected = world.run(parallel_jobs.train, 1, changes=changes, parallel=ParallelLayout(), optim=optim, steps=STEPS)[
        0
    ]
    found = world.run(
        zero3_jobs.train,
        2,
        changes=changes,
        parallel=ParallelLayout(recompute=True),
        zero=ZeroSection(**CUT),
        optim=optim,
        steps=STEPS,
    )
    assert_same_training(found, expected, 2)


def test_leaving_gives_every_thread_back(world: World):
    """DeepSpeed keeps engines in globals, and each kept 24 threads of its groups: thousands after a test suite."""
    engines = [
        CUT,
        CUT,
        {**CUT, "init": False},
        {"stage": 2},
        {"stage": 1},
        CUT,
    ]  # each counts what the ones before left
    _, *left = (world.run(zero3_jobs.threads_and_a_step, 2, zero=ZeroSection(**zero)) for zero in engines)
    assert left == [left[0]] * len(left)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_step_reads_a_few_numbers_and_none_for_each_weight(world: World, stage: int):
    """Of the targets, the losses, the norm, whether it is finite; DeepSpeed reads a norm for each group of weights too."""
    for reads in world.run(zero3_jobs.host_reads, 2, zero=ZeroSection(stage=stage, param_persistence_threshold=200)):
        assert 3 <= reads <= 7
