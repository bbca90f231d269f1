"""Entries of the table of families that would be accepted and do something else than they say are refused."""

from __future__ import annotations

import dataclasses
import re

import pytest

from model.families import FAMILIES, Family, by_flavour
from pretrain.system.errors import UserError


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flavour": ""}, "flavour of '' is '': a name is needed"),
        ({"licence": ""}, "licence of 'qwen2.5' is '': cards show it"),
        ({"licence": " "}, "licence of 'qwen2.5' is ' ': cards show it"),
        (
            {"end_of_text": "<end>"},
            "end_of_text of 'qwen2.5' is '<end>': a tuple of token names",
        ),  # its tokens were `<`, `e`
        ({"end_of_text": ()}, "end_of_text of 'qwen2.5' is (): a tuple of token names"),
        (
            {"defaults": {"head_dim": None}},
            "defaults of 'qwen2.5' is {'head_dim': None}: num_key_value_heads is needed",
        ),
        (
            {"plain": {"use_mrope": False}},
            "plain of 'qwen2.5' is {'use_mrope': False}: the values of use_mrope must be a tuple",
        ),
    ],
)
def test_a_value_that_would_mean_something_else_is_refused(changes, said):
    with pytest.raises(UserError, match=re.escape(f"model/families.py: {said}")):
        dataclasses.replace(FAMILIES["qwen2"], **changes)


@pytest.mark.parametrize("field", ["attention_bias", "qk_norm", "end_of_text", "causal_lm", "licence", "defaults"])
def test_a_field_that_is_left_out_is_named(field):
    values = {name: getattr(FAMILIES["qwen2"], name) for name in Family.__dataclass_fields__ if name != field}
    with pytest.raises(TypeError, match=f"'{field}'"):
        Family(**values)


def test_two_families_have_two_flavours():
    with pytest.raises(UserError, match="two families have the flavour 'qwen3': rename one"):
        by_flavour([*FAMILIES.values(), FAMILIES["qwen3"]])
