"""The learning rate of every step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config_checks import CHOICES
from pretrain.schedule import DECAYS, learning_rate

USUAL = {"peak": 1e-3, "final": 1e-4, "warmup": 10, "steps": 110}


def rates(**changes) -> list[float]:
    values = {**USUAL, "decay": "cosine", **changes}
    return [learning_rate(step, **values) for step in range(values["steps"] + 1)]


def test_warm_up_is_linear_and_its_first_step_moves():
    assert rates()[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert rates(warmup=0)[0] == 1e-3


def test_decays_by_hand():
    assert rates(decay="linear")[10::25] == pytest.approx([1e-3, 7.75e-4, 5.5e-4, 3.25e-4, 1e-4])
    cosine = rates(decay="cosine")
    assert [cosine[step] for step in (10, 60, 110)] == pytest.approx([1e-3, 5.5e-4, 1e-4])
    assert cosine[35] == pytest.approx(1e-4 + 9e-4 * (0.5 + 0.5**1.5))
    assert rates(decay="constant")[9:] == [1e-3] * 102


def test_the_configuration_offers_these_decays():
    assert CHOICES["optim.decay"] == DECAYS


@given(st.sampled_from(DECAYS), st.integers(0, 50), st.integers(1, 60), st.floats(0, 1), st.integers(0, 200))
def test_every_rate_lies_between_its_ends(decay, warmup, steps, final, step):
    rate = learning_rate(step, peak=1.0, final=final, warmup=warmup, steps=steps, decay=decay)
    lowest = 1 / warmup if step < warmup else final
    assert min(lowest, 1.0) - 1e-12 <= rate <= 1.0 + 1e-12
    if step >= max(steps, warmup) and decay != "constant" and steps > warmup:
        assert rate == pytest.approx(final)
