"""Sums and gathers beside the arithmetic give what they give after it, and are as many."""

import pytest
import torch

from pretrain.parallel import ParallelLayout
from tests.parallel_world import World
from tests.pretrain import parallel_jobs
from tests.pretrain.test_parallel import BOTH, FLAVOURS, SEQUENCE, TIED, UNTIED

LAYOUTS = {  # ranks, layout, flavours: both where the head's weight is gathered late, or norms are summed over more ranks
    "dp2": (2, {}, (UNTIED,)),
    "dp2 distributed": (2, {"distributed_optimizer": True}, BOTH),
    "dp2 distributed recomputed": (2, {"distributed_optimizer": True, "recompute": True}, (UNTIED,)),
    "dp4 distributed": (4, {"distributed_optimizer": True}, (TIED,)),
    "tp2 sp dp2 distributed": (4, {**SEQUENCE, "distributed_optimizer": True}, BOTH),
    "pp2 dp2 distributed": (4, {"pipeline": 2, "distributed_optimizer": True}, (TIED,)),
    "pp2 dp2 interleaved": (4, {"pipeline": 2, "layout": "Ett|t|t|ttL", "distributed_optimizer": True}, (TIED,)),
}
ELEMENTS = 2000  # the tiny model then has a dozen buckets


@pytest.mark.parametrize("layout, flavour", [(layout, flavour) for layout in LAYOUTS for flavour in LAYOUTS[layout][2]])
def test_overlap_changes_nothing_beyond_rounding(world: World, layout: str, flavour: str):
    ranks, switches, _ = LAYOUTS[layout]
    (beside, after) = (
        world.run(
            parallel_jobs.train_in_buckets,
            ranks,
            changes=FLAVOURS[flavour],
            elements=ELEMENTS,
            parallel=ParallelLayout(**switches, overlap=overlap),
        )
        for overlap in (True, False)
    )
    for (one, buckets, sent, fresh), (other, single, _, _) in zip(beside, after, strict=True):
        assert fresh, "what is stored are the weights of the last update"
        assert single <= 3 and (buckets > 3 or "pipeline" in switches)
        assert set(sent) == {buckets}, "one sum a bucket and step, whatever the number of rows"
        (steps, measured, weights), (steps_after, measured_after, weights_after) = one, other
        assert steps[0][:4] == steps_after[0][:4], "the first losses are those of the same weights"
        for here, there in zip([*steps, measured], [*steps_after, measured_after], strict=True):
            assert here == pytest.approx(there, rel=2e-6)
        for name, tensor in weights.items():
            torch.testing.assert_close(
                tensor, weights_after[name], atol=2e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_gradients_in_bf16_are_those_of_bf16_and_no_others(world: World):
    switches = {"distributed_optimizer": True, "overlap": True}
    whole, half = (
        world.run(
            parallel_jobs.train_in_buckets,
            2,
            changes={},
            elements=ELEMENTS,
            precision="bf16",
            parallel=ParallelLayout(**switches, gradients=gradients),
        )[0][0]
        for gradients in ("fp32", "bf16")
    )
    assert whole[0][0][:4] == half[0][0][:4]
    assert whole[0] != half[0], "rounded to bfloat16, sums are others"
    for here, there in zip(whole[0], half[0], strict=True):
        assert here[4] == pytest.approx(there[4], rel=2e-2)
