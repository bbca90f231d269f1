"""What a run is expected to need: ZeRO's bytes against DeepSpeed's own tensors, and the line that a user sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.weight_shapes import share_sizes, stage_shapes
from pretrain.config import ZeroSection, load_config
from pretrain.engines import zero3_setup
from pretrain.parallel import ParallelLayout
from pretrain.planning import zero as planned
from pretrain.planning.expected import GIB, expected_memory
from pretrain.planning.shape import row_shape
from pretrain.setup import sized_config
from tests.model.tiny_training import training_config
from tests.parallel_world import World
from tests.pretrain.planning import planning_jobs
from tests.pretrain.planning.test_memory import FLAVOURS

CONFIGS = Path(__file__).resolve().parents[3] / "pretrain/configs"
CASES = {
    "zero3 on 3": (3, {}, {"param_persistence_threshold": 0}, "bf16"),  # parts of most weights are rounded up
    "zero3 on 2, small weights whole": (2, {}, {"param_persistence_threshold": 200}, "fp32"),
    "tp2 x zero3": (4, {"tensor": 2}, {"param_persistence_threshold": 200}, "bf16"),
    "zero2 on 3": (3, {}, {"stage": 2}, "bf16"),  # a group is padded to a multiple of 6 there, not of 3
    "zero1 on 2": (2, {}, {"stage": 1}, "fp32"),
    "zero1 on 2, half": (2, {}, {"stage": 1}, "bf16"),
}


@pytest.mark.parametrize("case", CASES)
def test_zero_holds_what_is_planned(world: World, case: str):
    """Exactly: weights, gradients (where they can be told from what is sent) and optimizer state of every rank."""
    ranks, parallel, zero, precision = CASES[case]
    layout, section = ParallelLayout(**parallel), ZeroSection(**zero)
    changes = FLAVOURS["untied qwen3"]
    config = training_config(**changes)
    shapes = stage_shapes(config, 0, config.num_hidden_layers, embedding=True, head=True)
    decays = {name: len(shape) > 1 for name, shape in shapes.items()}
    for held in world.run(
        planning_jobs.zero_held_bytes, ranks, changes=changes, parallel=layout, zero=section, precision=precision
    ):
        sizes = share_sizes(shapes, layout.tensor)
        plan = planned.zero_bytes(sizes, decays, held["ranks"], section, precision == "bf16")
        assert held["weights"] == plan.weights
        assert held["optimizer"] == plan.optimizer
        if section.stage == 3 or section.stage == 1 and precision == "bf16":  # none shares memory with a buffer
            assert held["gradients"] == plan.gradients


def test_the_buckets_are_those_of_the_engine():
    values = zero3_setup.settings(ZeroSection(), load_config(CONFIGS / "pretrain_3b.yaml").optim, True, 10**12)
    assert values["zero_optimization"]["reduce_bucket_size"] == planned.BUCKET


def test_offload_leaves_the_weights_on_the_device():
    sizes, decays = {"a": 1000}, {"a": True}
    kept, offloaded = (
        planned.zero_bytes(sizes, decays, 4, ZeroSection(offload=offload, param_persistence_threshold=0), True)
        for offload in (False, True)
    )
    assert (kept.weights, kept.gradients, kept.optimizer) == (500, 1000, 3000)
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (500, 0, 0)


@pytest.mark.parametrize(
    "words",
    [
        ["run.engine=zero3", "parallel.tensor=1", "parallel.sequence=false"],
        ["run.engine=megatron"],
        ["run.engine=megatron", "parallel.pipeline=4", "parallel.layout='Et*9|t*9|t*9|t*9L'"],
    ],
    ids=["zero3", "as shipped", "pipeline"],
)
def test_the_3b_model_is_expected_to_fit(words: list[str]):
    config = load_config(CONFIGS / "pretrain_3b.yaml", [*words, "parallel.recompute=true"])
    model = sized_config(config.model, 151_936, 8_192, special=(0, 1, 2))
    few, many = (expected_memory(config, model, row_shape(config.data.sequence_length), ranks) for ranks in (4, 16))
    assert few.total > many.total > 4 * GIB and many.total < 80 * GIB
    assert str(many).startswith(f"about {many.total / GIB:.1f} GiB on a device: weights ")
