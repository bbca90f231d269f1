"""Which layers are proposed: against trying all choices, on planted profiles, and what is not proposed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.system.errors import UserError
from tests.commands import assert_refused
from tests.model.tiny_training import training_config
from tools.analysis.conflict_profile import Line, write
from tools.analysis.separation import Conflict, best_ends, conflicts_of, propose, words


def profile(values, error: float = 0.02) -> list[Conflict]:
    return [Conflict(value, error) for value in values]


def test_the_planted_layers_are_proposed_and_no_others():
    found = propose(profile([0.9, 0.0, 0.01, 0.0, -0.02, 0.8]), budget=1.0)
    assert (found["shallow"], found["deep"]) == (1, 1) and found["conflict_covered"] == 1.0
    assert found["chosen_in"]["1:1"] > 0.5 and "model.shallow=1 model.deep=1" in words(found)


def test_the_budget_goes_where_the_conflict_is():
    values = [0.9, 0.6, 0.2, 0.1, 0.3, 0.5]
    assert [(p["shallow"], p["deep"]) for p in (propose(profile(values), share / 6) for share in (1, 2, 3, 4))] == [
        (1, 0),
        (2, 0),
        (2, 1),
        (2, 2),
    ]


def test_what_cannot_be_told_from_nothing_is_not_separated():
    found = propose(profile([0.03, -0.02, 0.01, 0.02], error=0.05), budget=0.5)
    assert (found["shallow"], found["deep"], found["conflict_covered"]) == (0, 0, 0.0)
    assert "separate none" in words(found)
    near = propose(profile([0.4, 0.1, 0.1, 0.39], error=0.1), budget=0.25)
    assert max(near["chosen_in"].values()) < 0.7


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(0, 9))
def test_no_other_choice_has_more(values, most):
    shallow, deep = best_ends(values, most)
    assert shallow + deep <= min(most, len(values))

    def total(s: int, d: int) -> float:
        return sum(value for index, value in enumerate(values) if index < s or index >= len(values) - d)

    for s in range(min(most, len(values)) + 1):
        for d in range(min(most, len(values)) - s + 1):
            assert total(s, d) <= total(shallow, deep) + 1e-8


@pytest.mark.parametrize("budget", [0, -1, 0.1, 1.2, float("nan"), float("inf")])
def test_a_budget_that_buys_no_layer_or_more_than_all_is_refused(budget):
    with pytest.raises(UserError, match="budget"):
        propose(profile([0.5] * 4), budget)


def write_profile(folder, kinds):
    lines = [
        Line(i, kind, "both", "layer", value, value - 0.1, value + 0.1, 0.0, value, 0.0)
        for i, (kind, value) in enumerate(zip(kinds, (0.8, 0.05, 0.02, 0.7)))
    ]
    settings = {"blocks": 4, "targets": 8, "text": "any", "seed": 0, "checkpoint": "c", "data": ["d"]}
    write(folder, lines, training_config(layer_kinds=kinds), settings)


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda values: values.update(lines=[]), "has no line of layer 0: measure the model again"),
        (lambda values: values["lines"].pop(2), "has no line of layer 2: measure the model again"),
        (lambda values: values["lines"].append(values["lines"][0]), "has 2 lines of layer 0"),
        (lambda values: values["lines"][1].update(conflict=float("nan")), "layer 1 .*conflict nan"),
        (lambda values: values["lines"][1].update(low=None), "no conflict profile .*low is None"),
        (lambda values: values["lines"][1].update(conflict="x"), "no conflict profile .*conflict is 'x'"),
        (lambda values: values["model"].pop("layer_kinds"), "no conflict profile .*layer_kinds"),
        (lambda values: values.update(model=[]), "no conflict profile"),
    ],
)
def test_a_damaged_profile_gives_no_proposal(tmp_path, harm, message):
    write_profile(tmp_path, ("shared",) * 4)
    values = json.loads((tmp_path / "conflict.json").read_text())
    harm(values)
    (tmp_path / "conflict.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        conflicts_of(tmp_path, "layer")
    (tmp_path / "conflict.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="no conflict profile"):
        conflicts_of(tmp_path, "layer")


def test_a_proposal_is_written_over_a_proposal_only(commands, tmp_path):
    write_profile(tmp_path, ("shared",) * 4)
    words = ("tools/suggest_separation.py", "--profile", tmp_path, "--budget", 0.5, "--output")
    before = (tmp_path / "conflict.json").read_bytes()
    assert_refused(commands.run(*words, tmp_path / "conflict.json"), "conflict.json", "is no proposal")
    assert (tmp_path / "conflict.json").read_bytes() == before
    assert_refused(commands.run(*words, tmp_path), "--output", "is a folder")
    for _ in range(2):
        assert commands.run(*words, tmp_path / "new" / "found.json").code == 0


def test_the_command_reads_a_profile(commands, tmp_path):
    write_profile(tmp_path / "shared", ("shared",) * 4)
    arguments = ("--profile", tmp_path / "shared", "--budget", 0.5, "--output", tmp_path / "found.json")
    done = commands.run("tools/suggest_separation.py", *arguments)
    assert done.code == 0 and "model.shallow=1 model.deep=1" in done.out, done.err
    assert json.loads((tmp_path / "found.json").read_text())["shallow"] == 1
    write_profile(tmp_path / "uni-x", ("separated", "shared", "shared", "separated"))
    assert_refused(
        commands.run("tools/suggest_separation.py", "--profile", tmp_path / "uni-x", "--budget", 0.5), "all shared"
    )
    assert_refused(
        commands.run("tools/suggest_separation.py", "--profile", tmp_path, "--budget", 0.5), "no conflict profile"
    )
