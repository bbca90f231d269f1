"""What ranks write of frozen weights, each element once also where their number divides nothing, and going back to what was
written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config import ZeroSection
from pretrain.engines import zero3_state
from pretrain.tensor_boxes import TensorBox
from tests.parallel_world import World
from tests.pretrain import zero3_jobs


def frozen_of(rank: int, ranks: int, weight: torch.Tensor, patch: pytest.MonkeyPatch) -> list[TensorBox]:
    group = SimpleNamespace(rank=lambda: rank, size=lambda: ranks)
    patch.setattr(zero3_state, "parallel_state", SimpleNamespace(get_data_parallel_group=lambda: group))
    patch.setattr(zero3_state, "tensor_ranks", lambda: (0, 1))
    parameter = torch.nn.Parameter(weight, requires_grad=False)
    return zero3_state.frozen_boxes({parameter: "decoder.layers.0.text.mlp.linear_fc2.weight"}, cut=False)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), ranks=st.integers(1, 7))
def test_ranks_write_each_element_of_a_frozen_weight_once(rows, columns, ranks):
    weight, found = torch.arange(float(rows * columns)).view(rows, columns), torch.full((rows, columns), -1.0)
    with pytest.MonkeyPatch.context() as patch:
        boxes = [box for rank in range(ranks) for box in frozen_of(rank, ranks, weight, patch)]
    for box in boxes:
        place = tuple(slice(first, first + size) for first, size in zip(box.offsets, box.tensor.shape, strict=True))
        assert (found[place] == -1).all()
        found[place] = box.tensor
    assert torch.equal(found, weight)


SECTIONS = {  # ranks, zero section
    "cut": (2, {"param_persistence_threshold": 0}),
    "small weights whole": (2, {"param_persistence_threshold": 200}),
    "cut again inside of a node": (4, {"param_persistence_threshold": 0, "hpz_partition_size": 2}),
    "zero1": (2, {"stage": 1}),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_an_engine_that_goes_back_does_again_what_it_did(world: World, tmp_path, name: str):
    """Copies of weights that DeepSpeed has beside what is loaded, of the steps since, are made anew."""
    ranks, zero = SECTIONS[name]
    for before, after in world.run(
        zero3_jobs.figures_before_and_after_a_load, ranks, zero=ZeroSection(**zero), folder=tmp_path / "saved"
    ):
        assert before == after
