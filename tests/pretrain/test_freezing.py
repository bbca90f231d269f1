"""Frozen weights stay to the last bit, the others learn as if nothing were frozen, in every layout and engine."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.weight_names import training_names
from pretrain.config import ZeroSection
from pretrain.engines.freezing import frozen_names
from pretrain.parallel import ParallelLayout
from pretrain.sharded_files import stored_tensors, write_boxes
from pretrain.system.errors import UserError
from tests.model.tiny_training import training_config
from tests.parallel_world import World
from tests.pretrain import parallel_jobs, zero3_jobs
from tests.pretrain.test_engine import UNCLIPPED, engine_of, rows_of, weights_of
from tests.pretrain.test_parallel import FLAVOURS, SEQUENCE, TIED, UNTIED, assert_same_training

TEXT = ("embedding.*", "decoder.layers.*.text.*", "*layernorm.weight")
STEPS = parallel_jobs.TRAINED


def test_patterns_are_globs_over_training_names():
    config = training_config()
    names = training_names(config)
    assert frozen_names(("decoder.layers.0.text.*",), config) == {
        n for n in names if n.startswith("decoder.layers.0.text.")
    }
    assert frozen_names(("decoder.layers.[12].*", "embedding*"), config) == {
        n for n in names if n.startswith(("decoder.layers.1.", "decoder.layers.2.", "embedding"))
    }
    with pytest.raises(
        UserError, match="'decoder.layers.9.*' is the name of no weight: there are .*decoder.layers.0."
    ) as told:
        frozen_names(("embedding*", "decoder.layers.9.text.mlp"), config)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="leaves nothing to learn"):
        frozen_names(("*",), config)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_others_learn_as_if_nothing_were_frozen(precision):
    """Without a limit to the gradient's norm, an update of a weight depends on its own gradient only."""
    config = training_config()
    rows, frozen = rows_of(config), frozen_names(TEXT, config)
    engine = engine_of(config, dataclasses.replace(UNCLIPPED, freeze=TEXT), precision)
    free = engine_of(config, precision=precision)
    before = weights_of(engine)
    for step in range(STEPS):
        here, there = engine.train_step(rows, 0.01), free.train_step(rows, 0.01)
        assert here.updated and 0 < here.grad_norm < there.grad_norm
        if step == 0:
            assert (here.loss_text, here.loss_image) == (there.loss_text, there.loss_image)
            for name, tensor in weights_of(free).items():
                assert torch.equal(weights_of(engine)[name], before[name] if name in frozen else tensor), name
                assert not torch.equal(tensor, before[name]), name
    after = weights_of(engine)
    assert {name for name in after if torch.equal(after[name], before[name])} == frozen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_and_loaded_it_goes_on_to_the_last_bit_without_state_of_what_is_frozen(tmp_path, precision):
    config = training_config()
    optim, rows, frozen = dataclasses.replace(UNCLIPPED, freeze=TEXT), rows_of(config), frozen_names(TEXT, config)
    engine, other = (engine_of(config, optim, precision, seed) for seed in (0, 1))
    engine.train_step(rows, 0.01)
    write_boxes(tmp_path, engine.boxes())
    stored = stored_tensors(tmp_path)
    assert frozen < stored.keys()
    states = {name.split(".", 2)[2] for name in stored if name.startswith("optimizer.")}
    assert states == set(training_names(config)) - frozen
    other.load(tmp_path, 1)
    for lr in (0.01, 0.003):
        assert engine.train_step(rows, lr) == other.train_step(rows, lr)
    assert all(torch.equal(tensor, weights_of(other)[name]) for name, tensor in engine.weights())
    with pytest.raises(
        UserError, match="has no optimizer state of .* tensors that learn here .* set optim.freeze as it was"
    ):
        engine_of(config, precision=precision).load(tmp_path, 1)


CASES = {  # ranks, layout, zero section or None for the other engine
    "recomputed": (1, {"recompute": True}, None),
    "tp2 sp": (2, SEQUENCE, None),
    "pp2 recomputed": (2, {"pipeline": 2, "recompute": True}, None),
    "pp2, a stage without a weight that learns": (2, {"pipeline": 2, "layout": "E|ttttttL"}, None),
    "dp2 distributed optimizer": (2, {"distributed_optimizer": True}, None),
    "zero3 on 2": (2, {}, {"param_persistence_threshold": 0}),
    "zero3, small weights whole, recomputed": (2, {"recompute": True}, {"param_persistence_threshold": 200}),
    "zero2": (2, {}, {"stage": 2}),
    "tp2 sp x zero3": (4, SEQUENCE, {"param_persistence_threshold": 0}),
}


@pytest.fixture(scope="module")
def alone(world: World) -> dict:
    """What one process of the megatron engine does with frozen weights, and the weights that it starts from, by flavour."""
    optim = dataclasses.replace(parallel_jobs.OPTIM, freeze=TEXT)
    return {
        flavour: tuple(
            world.run(parallel_jobs.train, 1, changes=changes, parallel=ParallelLayout(), optim=optim, steps=steps)[0]
            for steps in (STEPS, 0)
        )
        for flavour, changes in FLAVOURS.items()
    }


@pytest.mark.parametrize(
    "case, flavour",
    [(case, TIED) for case in CASES if case != "tp2 sp x zero3"]
    + [(case, UNTIED) for case in ("tp2 sp", "tp2 sp x zero3")],
)
def test_frozen_in_every_layout(world: World, alone: dict, case: str, flavour: str):
    ranks, layout, zero = CASES[case]
    optim = dataclasses.replace(parallel_jobs.OPTIM, freeze=TEXT)
    job = {"changes": FLAVOURS[flavour], "parallel": ParallelLayout(**layout), "optim": optim, "steps": STEPS}
    if zero is None:
        found = world.run(parallel_jobs.train, ranks, **job)
    else:
        found = world.run(zero3_jobs.train, ranks, zero=ZeroSection(**zero), **job)
    trained, (_, _, first) = alone[flavour]
    assert_same_training(found, trained, ranks)
    frozen = frozen_names(TEXT, training_config(**FLAVOURS[flavour]))
    for _, _, weights in found:
        assert {name for name, tensor in weights.items() if torch.equal(tensor, first[name])} == frozen
