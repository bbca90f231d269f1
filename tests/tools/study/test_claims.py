"""The report's verdicts on the paper's claims: right on planted results, and none where the noise is larger."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from tools.study.cells import HOLDS, PROPOSAL
from tools.study.claims import OF_ARMS, answers, of_conflict, of_entropy, of_proposal, verdict
from tools.study.compare import MEASURES, number, paired, summary, width_of_questions
from tools.study.plan import ARMS, LAYERS, PRESETS, WORDS
from tools.study.report import overfitting, passes, step_costs

SEEDS = (0, 1, 2)


def arm(seed_effects=(0.0, 0.0, 0.0), text: float = 2.0, share: float = 0.5) -> dict:
    """Seed -> measures; the text loss alone is given, and one noise for all losses."""
    found = {}
    for seed, effect in zip(SEEDS, seed_effects):
        losses = {"text": text + effect, "names": 3.0 + effect, "pictures": 4.0 + effect}
        shares = {name: share for name, measure in MEASURES.items() if measure.is_share}
        found[seed] = {**losses, **shares, "questions": 48}
    return found


def noisy(text: float) -> dict:
    """Noise as in other arms, and a little of its own."""
    return arm((0.0, 0.011, -0.009), text)


def test_an_arm_is_better_or_worse_only_beyond_the_noise_of_the_seeds(tmp_path):
    arms = {name: noisy(2.0) for name in ARMS} | {
        "shared": arm((0.0, 0.01, -0.01)),
        "unix_both": noisy(1.5),
        "mot": noisy(2.3),
    }
    lines = "\n".join(answers(arms, tmp_path, [])).splitlines()
    by_pair = dict(zip(((one, base) for one, base, _, _ in OF_ARMS), [line for line in lines if line[:1].isdigit()]))
    better = by_pair["unix_both", "shared"]
    assert "Better: text loss (-0.499 ± " in better and "; not told apart: the other 6 of 7 measures. " in better
    assert better.endswith("**As in the paper, where it can be told.**")
    assert (
        by_pair["mot", "shared"].endswith("**As in the paper, where it can be told.**")
        and "Worse: text" in by_pair["mot", "shared"]
    )
    arms["unix_both"] = noisy(2.5)
    assert by_pair.keys() and "**The other way, where it can be told.**" in "\n".join(answers(arms, tmp_path, []))
    arms["unix_both"] = arm((0.5, -0.5, 0.1))
    line = next(line for line in answers(arms, tmp_path, []) if line.startswith("1. "))
    assert "Not told apart in any measure. **Cannot be told.**" in line


def test_a_proposal_is_held_against_the_papers_proportion(tmp_path):
    arms = {name: noisy(2.0) for name in ARMS}
    assert of_proposal(arms, tmp_path) == []
    (tmp_path / "proposal.json").write_text(json.dumps({**dict.fromkeys(HOLDS[PROPOSAL]), "shallow": 0, "deep": 3}))
    assert "does not lose" in of_proposal(arms, tmp_path)[0] and WORDS["unix_deep"] in of_proposal(arms, tmp_path)[0]
    arms["unix_deep"] = arm((0.0, 0.01, -0.01), 2.5)
    assert of_proposal(arms, tmp_path)[0].endswith("**The proposal loses.**")
    (tmp_path / "proposal.json").write_text(json.dumps({**dict.fromkeys(HOLDS[PROPOSAL]), "shallow": 2, "deep": 1}))
    assert of_proposal(arms, tmp_path) == []  # it is the paper's


def test_equal_shares_of_all_seeds_do_not_make_a_few_questions_certain():
    arms = {"a": arm(share=3 / 48), "b": arm(share=0.0)}
    mean, width = paired(arms, "a", "b", "naming")
    assert mean == 3 / 48 and width > mean
    assert (
        summary(arms["b"], "naming") == (0.0, width_of_questions(0.0, 48)) and 0.03 < width_of_questions(0.0, 48) < 0.08
    )
    mean, width = paired({"a": arm(share=0.9), "b": arm(share=0.1)}, "a", "b", "naming")
    assert mean == pytest.approx(0.8) and width < 0.2


def profile(folder: Path, name: str, conflicts: dict[int, float]) -> None:
    place = folder / name / "conflict"
    place.mkdir(parents=True)
    rest = {"kind": "shared", "met_by": "both", "low": 0, "high": 0, "between": 0, "halves": 0, "noise_free": 0}
    lines = [
        {"layer": layer, "matrix": part, "conflict": value if part == "layer" else 9.0, **rest}
        for layer, value in conflicts.items()
        for part in ("layer", "ffn")
    ]
    (place / "conflict.json").write_text(json.dumps({"lines": lines, "settings": {}, "model": {}}))


@pytest.mark.parametrize(
    "ends, found", [(0.5, "**As in the paper.**"), (0.1, "**The other way.**"), (0.2, "**Cannot be told.**")]
)
def test_conflict_at_the_ends_is_told_from_that_between_and_layers_are_compared_with_themselves(tmp_path, ends, found):
    for seed in SEEDS:
        noise = 0.01 * seed
        shared = {
            layer: (ends if layer in (0, 1, LAYERS - 1) else 0.2 - 0.01 * (seed - 1)) + noise for layer in range(LAYERS)
        }
        profile(tmp_path, f"shared-seed{seed}", shared)
        profile(tmp_path, f"unix_both-seed{seed}", {layer: shared[layer] - 0.1 - noise for layer in (2, 3, 4)})
    profile(tmp_path, "shared-lr9-seed0", dict.fromkeys(range(LAYERS), 7.0))
    cells = [(f"{name}-seed{seed}", name, seed, True) for name in ("shared", "unix_both") for seed in SEEDS]
    results = [
        {"name": name, "cell": {"arm": which, "seed": seed}, "compared": compared, "measures": {}}
        for name, which, seed, compared in [*cells, ("shared-lr9-seed0", "shared", 0, False)]
    ]
    where, left = of_conflict(tmp_path, results)
    assert where.endswith(found)
    assert f"{WORDS['unix_both']} -0.110 ± " in left and left.endswith("**As in the paper.**")
    assert of_conflict(tmp_path, []) == []


def entropies(folder: Path, pictures: dict, texts: dict) -> list[str]:
    (folder / "entropy").mkdir(exist_ok=True)
    with open(folder / "entropy/entropy.csv", "w", newline="") as file:
        heads = ("name", "modality", "n", "share", "plug_in", "corrected", "low", "high", "coverage", "windows")
        writer = csv.DictWriter(file, heads)
        writer.writeheader()
        for modality, orders in (("image", pictures), ("text", texts)):
            for n, (bits, coverage) in orders.items():
                for share, less in ((1.0, 0.0), (0.5, 9.0)):
                    writer.writerow(
                        {
                            "name": modality,
                            "modality": modality,
                            "n": n,
                            "share": share,
                            "plug_in": bits - 0.2 - less,
                            "corrected": bits,
                            "low": bits - 0.3,
                            "high": bits + 0.3,
                            "coverage": coverage,
                            "windows": 1000 if share == 1.0 else 500,
                        }
                    )
    return of_entropy(folder)


def test_entropies_are_compared_only_where_a_small_sample_cannot_have_made_the_difference(tmp_path):
    assert of_entropy(tmp_path) == []
    (line,) = entropies(
        tmp_path, {1: (9.0, 1.0), 2: (5.0, 0.7), 3: (1.0, 0.5)}, {1: (6.0, 1.0), 2: (3.0, 0.9), 3: (2.0, 0.9)}
    )
    assert "n = 1: 9.00 against 6.00 to 6.00, higher; n = 2: 5.00 against 3.00 to 3.00, higher; n = 3: 1.00 " in line
    assert "2.00 to 2.00, cannot be told" in line and line.endswith("**As in the paper, where it can be told.**")
    (line,) = entropies(tmp_path, {1: (1.0, 0.95)}, {1: (6.0, 0.95)})
    assert line.endswith("**The other way.**")


def test_how_often_data_are_seen_is_of_all_that_was_counted(tmp_path):
    preset = dataclasses.replace(PRESETS["quick"], steps=20, sequence_length=137)
    assert passes(preset, tmp_path) == ""
    entropies(tmp_path, {1: (9.0, 1.0), 2: (5.0, 0.7)}, {1: (6.0, 1.0), 2: (3.0, 0.9)})
    assert passes(preset, tmp_path) == "; a training sees each text 1.4 times and each picture 1.3 times"


def test_a_picture_loss_that_rose_again_is_told_with_the_arm_in_which_it_rose_most():
    def cell(arm: str, *image_losses: float) -> dict:
        curve = [(10 * step, 2.0, loss) for step, loss in enumerate(image_losses)]
        return {"cell": {"arm": arm}, "compared": True, "measures": {}, "curve": curve}

    falling, rising = cell("shared", 9.0, 5.0, 4.0), [cell("mot", 9.0, 4.0, 4.1), cell("mot", 9.0, 4.0, 4.3)]
    tried, failed = (
        {**cell("mot", 1.0, 9.0), "compared": False},
        {"cell": {"arm": "mot"}, "failed": "x", "compared": True},
    )
    assert overfitting([falling]) == overfitting([failed]) == []
    (line,) = overfitting([falling, *rising, tried, failed])
    assert "(by 0.00 to 0.20 nats, most in Mixture-of-Transformers)" in line


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    assert number(-0.0004, 0.1) == "0.000 ± 0.100" and number(-0.0006, 0.1) == "-0.001 ± 0.100"


def test_verdicts():
    assert verdict(["a"], "a", "b") == "**As in the paper.**" and verdict(["b", "x"], "a", "b").startswith(
        "**The other way, "
    )
    assert "In part" in verdict(["a", "b", "x"], "a", "b") and verdict(["x"], "a", "b") == "**Cannot be told.**"


def test_step_costs_are_paired_by_row(tmp_path):
    assert step_costs(tmp_path) == {}
    seconds = {"w/shared-seed0/run": [1.0, 2.0, 1.0], "w/mot-seed0/run": [1.5, 3.0, 1.5]}
    (tmp_path / "speed.json").write_text(json.dumps({"sequence_length": 100, "seconds": seconds}))
    assert step_costs(tmp_path) == {"shared": ("100", "1"), "mot": ("67", "1.50 (1.50 to 1.50)")}
