"""Rotary positions of a config.json in every spelling: the base and the scaling are taken, or refused by name."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.hf.rope_uni_x import Rope, frequencies
from model.rope import UNSUPPORTED, rope_of
from pretrain.system.errors import UserError

LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS = [
    {"type": "linear", "factor": 4.0},
    {"rope_type": "linear", "factor": 1},
    {"rope_type": "llama3", **LLAMA3},
    {"rope_type": "llama3", **LLAMA3, "factor": 8.0, "original_max_position_embeddings": 64},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 512},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
    },
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4, "beta_fast": None},
]


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_frequencies_are_those_of_transformers(scaling, head_dim):
    """In the spelling of transformers 4, and in that of 5."""
    config = LlamaConfig(head_dim=head_dim, rope_theta=5e5, rope_scaling=dict(scaling), max_position_embeddings=131072)
    kind = scaling.get("rope_type", scaling.get("type"))
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    values = {"rope_theta": 5e5, "rope_scaling": scaling, "max_position_embeddings": 131072}
    of_5 = {"rope_parameters": {"rope_theta": 5e5, "rope_type": kind, **scaling}, "max_position_embeddings": 131072}
    of_5["rope_parameters"].pop("type", None)
    assert rope_of(values, 1e4, "x") == rope_of(of_5, 1e4, "x")
    found, our_factor = frequencies(head_dim, Rope(*rope_of(values, 1e4, "x")))
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=0)
    assert our_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_scaling": {}},
        {"rope_theta": 1000000, "rope_scaling": {"type": "default"}},
        {"rope_theta": 1e6, "rope_scaling": {"type": "default", "rope_type": "default", "factor": 4.0}},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e6}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_parameters": None},
        {"rope_theta": 1000000, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    ],
)
def test_the_base_is_found_in_every_spelling(values):
    assert rope_of(values, 10_000.0, "config.json") == (1e6, None)
    assert rope_of({}, 10_000.0, "config.json") == (10_000.0, None)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "spellings of the rotary base disagree"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters differs by kind of layer"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn': an object or null"),
        ({"rope_theta": "many"}, "rope_theta is 'many': a number above 0"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 2}}, "rope_type and type disagree"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 2]}}, "mrope_section is [1, 2]"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is not 1"),
        ({"rope_scaling": {"rope_type": "new"}}, "rope_type 'new' is not known"),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear positions need factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 9, "x": 1}}, "x is 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}, "max_position_embeddings": 9}, "factor is '4'"),
        (
            {"rope_scaling": {**LLAMA3, "rope_type": "llama3", "low_freq_factor": None}},
            "llama3 positions need low_freq",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
            "low_freq_factor 4.0 is not below",
        ),
        *[({"rope_scaling": {"rope_type": kind, "factor": 2.0}}, f"rope_type '{kind}'") for kind in UNSUPPORTED],
    ],
)
def test_what_is_refused_is_named(values, parts):
    with pytest.raises(UserError, match="^" + re.escape("config.json: ") + ".*" + re.escape(parts)) as error:
        rope_of(values, 10_000.0, "config.json")
    assert "\n" not in str(error.value)
