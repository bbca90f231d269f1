"""Layouts: what is written becomes stages, and what cannot be cut is refused in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.parallel import ParallelLayout, check_layout, megatron_settings, stage_layers, stages_per_rank
from pretrain.system.errors import UserError
from tests.model.tiny_training import training_config


@given(st.integers(1, 8), st.integers(0, 40))
def test_even_stages_differ_by_one_layer_at_most(pipeline: int, layers: int):
    stages = stage_layers("", pipeline, layers)
    counts = [stage.count("t") for stage in stages]
    assert len(stages) == pipeline and sum(counts) == layers and max(counts) - min(counts) <= 1
    assert stages[0].startswith("E") and stages[-1].endswith("L") and "".join(stages) == "E" + "t" * layers + "L"


@pytest.mark.parametrize(
    "layout, pipeline, expected",
    [
        ("Ett|tt", 2, None),
        ("Et|tttL", 2, ["Et", "tttL"]),
        ("E|tt|tt|L", 4, ["E", "tt", "tt", "L"]),
        ("Et*2|t*2L", 2, ["Ett", "ttL"]),
        ("E(t|)*4L", 5, ["Et", "t", "t", "t", "L"]),
        ("Et||ttt|L", 2, ["Et", "", "ttt", "L"]),
    ],
)
def test_a_layout_is_read_as_megatron_core_reads_it(layout, pipeline, expected):
    if expected is None:
        with pytest.raises(UserError, match="then L"):
            stage_layers(layout, pipeline, 4)
        return
    assert stage_layers(layout, pipeline, 4) == expected
    assert stages_per_rank(ParallelLayout(pipeline=pipeline, layout=layout), 4) == len(expected) // pipeline
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    theirs = PipelineParallelLayerLayout.parse_str_to_list(layout)
    assert [len(stage) for stage in theirs] == [len(stage) for stage in expected]


@pytest.mark.parametrize(
    "parallel, said",
    [
        ({"tensor": 3}, "num_attention_heads 4 is not divisible by 3"),
        ({"tensor": 4}, "num_key_value_heads 2 is not divisible by 4"),
        ({"sequence": True}, "at least 2 tensor-parallel ranks"),
        ({"pipeline": 2, "layout": "Ett|ttttL"}, "has 6 layers: the model has 4"),
        ({"pipeline": 2, "layout": "E|tt|ttL"}, "equally many"),
        ({"pipeline": 2, "layout": "ttE|ttL"}, "write E, then"),
        ({"pipeline": 2, "layout": "Ettm|ttL"}, "write E, then"),
        ({"layout": "Ett|ttL"}, "one pipeline rank"),
    ],
)
def test_what_cannot_be_cut_is_refused(parallel, said):
    with pytest.raises(UserError, match=said) as caught:
        check_layout(ParallelLayout(**parallel), training_config())
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="vocab_size 123 is not divisible by 2"):
        check_layout(ParallelLayout(tensor=2), training_config(vocab_size=123))


def test_interleaved_stages_never_use_unordered_sends():
    """With two pipeline ranks these give wrong losses without an error."""
    settings = megatron_settings(ParallelLayout(pipeline=2, layout="Et|t|t|tL"), 4)
    assert settings["virtual_pipeline_model_parallel_size"] == 2
    assert settings["overlap_p2p_comm"] and not settings["batch_p2p_comm"]
