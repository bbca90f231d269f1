"""Rotary positions of a config.json in every spelling: the base and the scaling are taken, or refused by name."""

from __future__ import annotations

import re

import pytest

from model.errors import UserError
from model.rope import UNSUPPORTED, rope_of


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
        *[({"rope_scaling": {"rope_type": kind, "factor": 2.0}}, f"rope_type '{kind}'") for kind in UNSUPPORTED],
    ],
)
def test_what_is_refused_is_named(values, parts):
    with pytest.raises(UserError, match="^" + re.escape("config.json: ") + ".*" + re.escape(parts)) as error:
        rope_of(values, 10_000.0, "config.json")
    assert "\n" not in str(error.value)
