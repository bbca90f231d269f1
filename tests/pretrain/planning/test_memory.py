"""The planner's bytes against real modules and optimizers in many layouts, and its sizes of the paper's models.

Weights, gradients and optimizer state must be exact. Activations are compared with what autograd keeps for the backward
pass on a CPU (each storage once), not with the peak of a GPU.
"""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import no_init_weights

from model import loss
from model.config import ModelConfig
from model.hf.configuration_uni_x import UniXConfig
from model.hf.modeling_uni_x import UniXForCausalLM
from model.weight_shapes import active_parameters, parameters, stage_shapes
from pretrain.config import load_config
from pretrain.parallel import ParallelLayout, stage_layers
from pretrain.planning import activations, memory
from pretrain.planning.activations import RowShape, activation_bytes
from pretrain.planning.cuts import stages_of
from pretrain.planning.memory import PipelineStage, static_bytes
from pretrain.setup import sized_config
from tests.model.tiny_hf import QWEN3, QWEN25
from tests.model.tiny_training import training_config, training_model
from tests.parallel_world import World
from tests.pretrain.planning import planning_jobs
from tools.benchmarks.cases import uni_x_config

CONFIGS = Path(__file__).resolve().parents[3] / "pretrain/configs"
KINDS = ("separated", "separated", "shared", "shared", "separated")
FLAVOURS = {
    "tied qwen2.5": {"layer_kinds": KINDS, "tie_word_embeddings": True, **QWEN25},
    "untied qwen3": {"layer_kinds": KINDS, "tie_word_embeddings": False, **QWEN3},
}
SEQUENCE = {"tensor": 2, "sequence": True}
LAYOUTS = {
    "one process": (1, {}),
    "tp2": (2, {"tensor": 2}),
    "pp2": (2, {"pipeline": 2, "layout": "Et|ttttL"}),
    "tp2 sp pp2": (4, {**SEQUENCE, "pipeline": 2}),
    "dp2": (2, {}),
    "dp2 distributed optimizer": (2, {"distributed_optimizer": True}),
    "pp2 dp2 distributed optimizer": (4, {"pipeline": 2, "distributed_optimizer": True}),
    "tp2 sp dp2 distributed optimizer": (4, {**SEQUENCE, "distributed_optimizer": True}),
    "dp3 distributed optimizer": (3, {"distributed_optimizer": True}),
    "embedding alone, pp4": (4, {"pipeline": 4, "layout": "E|tt|tt|tL"}),
}


def planned_stages(parallel: ParallelLayout, layers: int) -> list[PipelineStage]:
    return stages_of([stage.count("t") for stage in stage_layers(parallel.layout, parallel.pipeline, layers)])


def in_turn(layouts: dict, flavours: dict) -> list[tuple[str, str, str]]:
    """(layout, precision, flavour): each layout in each precision, and in one of two flavours in each, so that it meets both.

    What a precision makes of a flavour is not the layout's doing: half of the grid has every pair of any two of the three.
    """
    names = list(flavours)
    return [
        (layout, precision, names[(place + half) % 2])
        for place, layout in enumerate(layouts)
        for half, precision in enumerate(("fp32", "bf16"))
    ]


def test_every_pair_has_its_turn():
    for layouts, flavours in ((LAYOUTS, FLAVOURS), (MEASURED, MEASURED_FLAVOURS)):
        found, grid = in_turn(layouts, flavours), list(product(layouts, ("fp32", "bf16"), flavours))
        assert 2 * len(found) == len(grid)
        for places in ((0, 1), (0, 2), (1, 2)):
            assert {tuple(line[at] for at in places) for line in found} == {
                tuple(line[at] for at in places) for line in grid
            }


@pytest.mark.parametrize("layout, precision, flavour", in_turn(LAYOUTS, FLAVOURS))
def test_weights_gradients_and_optimizer_are_exact(world: World, layout: str, precision: str, flavour: str):
    ranks, switches = LAYOUTS[layout]
    parallel, config = ParallelLayout(**switches), training_config(**FLAVOURS[flavour])
    data_ranks = ranks // parallel.tensor // parallel.pipeline
    found = world.run(
        planning_jobs.held_bytes, ranks, changes=FLAVOURS[flavour], parallel=parallel, precision=precision
    )
    for number, stage in enumerate(planned_stages(parallel, len(KINDS))):
        planned = static_bytes(config, stage, parallel, data_ranks, precision == "bf16")
        here = [rank for rank in found if rank["place"][0] == number]
        assert len(here) == ranks // parallel.pipeline
        for name in ("parameters", "weights", "gradients"):
            assert {rank[name] for rank in here} == {getattr(planned, name)}, name
        assert max(rank["optimizer"] for rank in here) == planned.optimizer


@pytest.mark.parametrize("precision, gradients", [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")])
@pytest.mark.parametrize(
    "layout", ["dp2 distributed optimizer", "pp2 dp2 distributed optimizer", "dp3 distributed optimizer"]
)
def test_the_buckets_of_overlap_are_exact(world: World, monkeypatch, layout: str, precision: str, gradients: str):
    """Every bucket is padded; those of the first stage have a size, later stages have one."""
    ranks, switches = LAYOUTS[layout]
    parallel, config = ParallelLayout(**switches, gradients=gradients), training_config(**FLAVOURS["untied qwen3"])
    data_ranks = ranks // parallel.tensor // parallel.pipeline
    monkeypatch.setattr(memory, "bucket_elements", lambda _ranks: 1500)
    found = world.run(
        planning_jobs.held_bytes,
        ranks,
        changes=FLAVOURS["untied qwen3"],
        parallel=parallel,
        precision=precision,
        bucket=1500,
    )
    for number, stage in enumerate(planned_stages(parallel, len(KINDS))):
        planned = static_bytes(config, stage, parallel, data_ranks, precision == "bf16")
        here = [rank for rank in found if rank["place"][0] == number]
        for name in ("parameters", "weights", "gradients"):
            assert {rank[name] for rank in here} == {getattr(planned, name)}, name
        assert max(rank["optimizer"] for rank in here) == planned.optimizer


@pytest.mark.parametrize("kinds", [KINDS, ("mot", "shared", "moe_hard", "separated")])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_shapes_are_those_of_the_modules_in_their_order(flavour: str, kinds: tuple[str, ...]):
    config = training_config(**{**FLAVOURS[flavour], "layer_kinds": kinds})
    held = {name: tuple(parameter.shape) for name, parameter in training_model(config).named_parameters()}
    shapes = stage_shapes(config, 0, len(kinds), embedding=True, head=True)
    assert list(held.items()) == list(shapes.items())
    assert parameters(config) == sum(torch.Size(shape).numel() for shape in held.values())


@pytest.mark.parametrize(
    "name, total, active",
    [("pretrain_3b", 4_490_101_760, 3_102_715_904), ("pretrain_1b5", 2_211_466_752, 1_556_297_216)],
)
def test_the_shipped_models_have_the_papers_sizes(name: str, total: int, active: int):
    """4.49 and 2.21 billion weights, 3.1 and 1.56 of which a token meets; counted again in modules without memory."""
    config = sized_config(load_config(CONFIGS / f"{name}.yaml").model, 151_936, 8_192, (0, 1, 2))
    assert config.vocab_size == 151_936 + 8_192
    assert (parameters(config), active_parameters(config)) == (total, active)
    with torch.device("meta"), no_init_weights():
        model = UniXForCausalLM(UniXConfig(**config.to_dict()))
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == total


MEASURED = {  # of tokens that are all attended to in documents long enough for the fused kernel
    "one process": (1, {}),
    "recomputed": (1, {"recompute": True}),
    "tp2": (2, {"tensor": 2}),
    "tp2 sp": (2, SEQUENCE),
    "tp2 sp recomputed": (2, {**SEQUENCE, "recompute": True}),
    "pp2": (2, {"pipeline": 2, "layout": "Ettt|tL"}),
    "tp2 sp pp2": (4, {**SEQUENCE, "pipeline": 2}),
}
MEASURED_FLAVOURS = {"qwen2.5": QWEN25, "qwen3": QWEN3}
TOKENS = 1024


def measured_config(changes: dict) -> ModelConfig:
    sizes = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "attention_bias": False,
        "qk_norm": False,
    }
    return dataclasses.replace(uni_x_config("small"), **{**sizes, **changes})


@pytest.mark.parametrize("layout, precision, flavour", in_turn(MEASURED, MEASURED_FLAVOURS))
def test_activations_are_within_15_percent_of_what_autograd_keeps(
    world: World, layout: str, precision: str, flavour: str
):
    ranks, switches = MEASURED[layout]
    parallel, config = ParallelLayout(**switches), measured_config(MEASURED_FLAVOURS[flavour])
    row, width = RowShape(TOKENS, 1, TOKENS // 2, TOKENS // 2), 2 if precision == "bf16" else 4
    found = world.run(
        planning_jobs.saved_bytes, ranks, config=config, parallel=parallel, precision=precision, tokens=TOKENS
    )
    stages = planned_stages(parallel, config.num_hidden_layers)
    for place, measured in found:
        if parallel.recompute:  # a layer saves no tables then, but the row's routing holds them until it is done
            measured += 4 * TOKENS * config.head_dim * width
        planned = activation_bytes(config, stages[place], row, parallel, width, 1, on_cpu=True).kept
        assert planned == pytest.approx(measured, rel=0.15), f"stage {place}: {planned / measured:.3f} of it"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_of_a_layer_that_is_mostly_attention(world: World, precision: str):
    """16 query heads beside narrow matrices: what attention saves is not hidden by what the MLP saves."""
    heads = {"num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 64}
    config, parallel = measured_config({**QWEN25, **heads}), ParallelLayout()
    row, width = RowShape(TOKENS, 1, TOKENS // 2, TOKENS // 2), 2 if precision == "bf16" else 4
    options = {"config": config, "parallel": parallel, "precision": precision, "tokens": TOKENS}
    ((_, measured),) = world.run(planning_jobs.saved_bytes, 1, **options)
    (stage,) = planned_stages(parallel, config.num_hidden_layers)
    planned = activation_bytes(config, stage, row, parallel, width, 1, on_cpu=True).kept
    assert planned == pytest.approx(measured, rel=0.15), f"{planned / measured:.3f} of it"


def test_the_planner_knows_how_many_logits_exist_at_a_time():
    assert activations.LOGITS_AT_ONCE == loss.LOGITS_AT_ONCE
    assert activations.SOFTMAX_AT_ONCE == loss.SOFTMAX_AT_ONCE


def test_what_saves_memory_is_planned_to_save_it():
    config = sized_config(load_config(CONFIGS / "pretrain_3b.yaml").model, 151_936, 8_192, (0, 1, 2))
    row, stage = RowShape(10_240, 9, 64, 1_025), PipelineStage(0, 36, True, True)
    peaks = [
        activation_bytes(config, stage, row, ParallelLayout(**switches), 2, 1).peak
        for switches in ({}, {"recompute_cheap": True}, {"tensor": 2}, SEQUENCE, {**SEQUENCE, "recompute": True})
    ]
    assert peaks == sorted(peaks, reverse=True) and peaks[4] < peaks[0] / 8 and peaks[1] < 0.75 * peaks[0]
