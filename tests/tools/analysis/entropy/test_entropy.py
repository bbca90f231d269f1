"""Entropies against a source whose entropy is known, against counting by dictionary, and where they cannot be known."""

from __future__ import annotations

import math
from collections import Counter

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.analysis.entropy.counting import BLOCK, batches, count, passes_needed
from tools.analysis.entropy.estimators import chao_shen, coverage, plug_in
from tools.analysis.entropy.measurement import entropy_of, measure


def markov_source(symbols: int, sequences: int, length: int, seed: int = 0) -> tuple[list[numpy.ndarray], float, float]:
    """Sequences of a first-order Markov chain -> (sequences, entropy of a symbol, entropy rate), in bits."""
    generator = numpy.random.default_rng(seed)
    transition = generator.dirichlet(numpy.full(symbols, 0.4), size=symbols)
    stationary = numpy.linalg.matrix_power(transition, 400)[0]
    steps = transition.cumsum(1)
    state = generator.choice(symbols, size=sequences, p=stationary)
    made = [state]
    for _ in range(length - 1):
        state = (generator.random(sequences)[:, None] > steps[state]).sum(1).clip(max=symbols - 1)
        made.append(state)
    single = -(stationary * numpy.log2(stationary)).sum()
    rate = -(stationary[:, None] * transition * numpy.log2(numpy.maximum(transition, 1e-300))).sum()
    return list(numpy.stack(made, axis=1)), float(single), float(rate)


def test_the_entropy_of_a_markov_source_lies_in_its_interval():
    sequences, single, rate = markov_source(symbols=12, sequences=400, length=200)
    assert single - rate > 0.5
    found = [entropy_of("m", "text", order, 1.0, len(sequences)) for order in count(lambda: sequences, 4)]
    for one, truth in zip(found, (single, rate, rate, rate), strict=True):
        assert one.low <= truth <= one.high and one.high - one.low < 0.2, one
        assert one.corrected == pytest.approx(truth, abs=0.03)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = []
    for seed in range(60):
        sequences, single, rate = markov_source(symbols=8, sequences=40, length=50, seed=seed)
        for order, truth in zip(count(lambda: sequences, 3), (single, rate, rate), strict=True):  # noqa: B023
            one = entropy_of("m", "text", order, 1.0, 40)
            held.append(one.low <= truth <= one.high)
    assert numpy.mean(held) >= 0.9


def test_with_too_few_windows_plug_in_falls_to_zero_and_nothing_is_trusted():
    """What the published image value at n = 4 does: 4.97 bits of many pictures, 0.28 of fewer."""
    few, _, rate = markov_source(symbols=200, sequences=40, length=64, seed=1)
    largest = [one for one in measure("m", "image", lambda: few, orders=4, points=3, memory=1e9) if one.share == 1.0]
    by_order = {one.n: one for one in largest}
    assert by_order[4].plug_in < 0.2 < 3 < rate
    assert abs(by_order[2].corrected - rate) < abs(by_order[2].plug_in - rate) / 2
    assert not by_order[4].trusted and by_order[4].coverage < 0.2
    many, _, rate = markov_source(symbols=10, sequences=800, length=64, seed=1)
    largest = [one for one in measure("m", "image", lambda: many, orders=3, points=3, memory=1e9) if one.share == 1.0]
    assert all(one.trusted for one in largest)


SEQUENCES = st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(SEQUENCES, st.integers(1, 5), st.integers(1, 3))
def test_counts_are_those_of_a_dictionary_in_any_number_of_passes(sequences, orders, passes):
    arrays = [numpy.array(tokens, dtype=numpy.uint32) for tokens in sequences]
    found = {order.n: order for order in count(lambda: arrays, orders, passes=passes)}
    for n in range(1, orders + 1):
        grams = Counter(tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1))
        if not grams:
            assert n not in found
            continue
        prefixes = Counter()
        for gram, times in grams.items():
            prefixes[gram[:-1]] += times
        assert found[n].windows == grams.total()
        assert found[n].of_count == Counter(grams.values()) and found[n].of_prefix_count == Counter(prefixes.values())
        expected = -sum(times * math.log2(times / prefixes[gram[:-1]]) for gram, times in grams.items()) / grams.total()
        assert found[n].entropy()[0] == pytest.approx(expected, abs=1e-9)
        joint, before = (plug_in(*found[n].histogram(which)) for which in (False, True))
        assert joint - before == pytest.approx(expected, abs=1e-9)


def test_windows_do_not_cross_from_one_sequence_to_the_next():
    pictures = [numpy.array([1, 2]), numpy.array([1, 2]), numpy.array([1, 2])]
    one, two = count(lambda: pictures, 3)
    assert (one.windows, two.windows) == (6, 3) and two.entropy()[0] == 0 and two.of_count == {3: 1}


def test_long_data_is_looked_at_in_parts_and_samples_are_nested():
    generator = numpy.random.default_rng(2)
    arrays = [generator.integers(0, 1000, 5000) for _ in range(150)]
    parts = list(batches(arrays, 1.0))
    assert len(parts) > 2 and sum(len(tokens) for tokens, _, _ in parts) == 150 * 5000
    groups = {int(group) for _, place, groups in parts for group in groups[(place == 0) | (place == BLOCK)]}
    assert len(groups) >= 60
    whole, in_passes = count(lambda: arrays, 2), count(lambda: arrays, 2, passes=3)
    assert [o.of_count for o in whole] == [o.of_count for o in in_passes]
    assert numpy.allclose(whole[1].information, in_passes[1].information)
    sizes = [count(lambda: arrays, 1, share)[0].windows for share in (0.25, 0.5, 1.0)]
    assert 0 < sizes[0] < sizes[1] < sizes[2] == 150 * 5000
    assert passes_needed(10**9, 6, 2 * 2**30) > 100 and passes_needed(10**6, 6, 2 * 2**30) == 1


def test_estimators_on_counts_that_can_be_done_by_hand():
    uniform = numpy.array([5]), numpy.array([8])  # eight symbols, five times each
    assert plug_in(*uniform) == pytest.approx(3) and coverage(*uniform) == 1.0
    assert chao_shen(*uniform) == pytest.approx(3, abs=0.05)
    once = numpy.array([1]), numpy.array([16])
    assert coverage(*once) == 0 and plug_in(*once) == 4 < chao_shen(*once)
