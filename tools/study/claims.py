"""Claims of the paper (arXiv 2509.24365), the study's findings on each, and whether they agree; in words."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

from tools.study.cells import PROPOSAL, read_json
from tools.study.compare import MEASURES, Arms, mean_and_width, number, paired, side_of
from tools.study.plan import ARMS, LAYERS, SUGGESTED, WORDS, same_arm

ENDS = (0, 1, LAYERS - 1)  # the layers that unix_both separates
AVERAGES = "averages of MMLU, GenEval and MMBench, Qwen2.5-1.5B after 28B tokens, one seed"
OF_ARMS = (  # arm, base, direction in the paper (1: arm better), the paper's words
    ("unix_both", "shared", 1, "better, 41.6 against 38.0"),
    ("unix_both", "unix_shallow", 1, "both ends are better than one"),
    ("unix_both", "unix_deep", 1, "both ends are better than one"),
    ("unix_both", "mot", 1, "better, 41.6 against 34.6"),
    ("mot", "shared", -1, "worse, 34.6 against 38.0; but its MoT had no vision output projection and shared norms"),
)
UNI_X = [arm for arm, model in ARMS.items() if model["kind"] == "separated"]


def measures_by_side(arms: Arms, arm: str, base: str) -> tuple[dict[str, list[str]], str]:
    """Measures by side ("better", "worse", "not told apart"), and the same as a sentence."""
    equal = "not told apart"
    sides: dict[str, list[str]] = {"better": [], "worse": [], equal: []}
    for name, measure in MEASURES.items():
        mean, width = paired(arms, arm, base, name)
        side = side_of(mean, width, measure.better)
        sides[side].append(f"{measure.words} ({measure.number(mean, width)})")
    if len(sides[equal]) == len(MEASURES):
        return sides, f"{equal} in any measure"
    words = [f"{side}: {', '.join(those)}" for side, those in sides.items() if those and side != equal]
    if sides[equal]:  # their figures are in the tables
        words.append(f"{equal}: the other {len(sides[equal])} of {len(MEASURES)} measures")
    return sides, "; ".join(words)


def verdict(sides, as_paper: str, other_way: str) -> str:
    """Verdict on a claim: sides that agree with the paper and those that do not, in bold."""
    found = set(sides)
    if not found & {as_paper, other_way}:
        return "**Cannot be told.**"
    if found >= {as_paper, other_way}:
        return "**In part as in the paper, in part the other way.**"
    words = "As in the paper" if as_paper in found else "The other way"
    return f"**{words}{', where it can be told' if len(found) > 1 else ''}.**"


def answers(arms: Arms, folder: Path, results: list[dict]) -> list[str]:
    """A numbered line for each claim that the finished cells cover."""
    lines = []
    for arm, base, way, paper in OF_ARMS:
        if arm in arms and base in arms:
            sides, words = measures_by_side(arms, arm, base)
            agrees, differs = ("better", "worse") if way > 0 else ("worse", "better")
            found = [side for side, those in sides.items() if those]
            lines.append(
                f"{_capital(WORDS[arm])} against {WORDS[base]} (paper: {paper}). {_capital(words)}. "
                + verdict(found, agrees, differs)
            )
    lines += of_proposal(arms, folder)
    lines += of_conflict(folder, results) + of_entropy(folder)
    if not lines:
        return []
    numbered = [f"{count}. {line}" for count, line in enumerate(lines, 1)]
    return [
        "## What was found",
        "",
        f"The paper's figures of arms are {AVERAGES}: no measure of ours, which Results explains.",
        "",
        *numbered,
        "",
    ]


def of_proposal(arms: Arms, folder: Path) -> list[str]:
    """Compare the separation proposed from the shared transformer's conflict with the paper's proportion."""
    path = folder / PROPOSAL
    proposed = (same_arm(read_json(path)) or SUGGESTED) if path.is_file() else ""
    if proposed not in arms or "unix_both" not in arms or proposed == "unix_both":
        return []
    sides, words = measures_by_side(arms, proposed, "unix_both")
    if sides["worse"]:
        end = "**In part better, in part worse.**" if sides["better"] else "**The proposal loses.**"
    else:
        end = (
            "**The proposal is better, where it can be told.**"
            if sides["better"]
            else "**The proposal does not lose, as far as can be told.**"
        )
    return [
        f"What conflict proposes, {WORDS[proposed]}, against {WORDS['unix_both']} (paper: chose by hand). {_capital(words)}. {end}"
    ]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def layer_conflicts(folder: Path, results: list[dict], arm: str) -> dict[int, dict[int, float]]:
    """Seed -> layer -> conflict of shared weights, of compared cells that have a profile."""
    from tools.analysis.conflict_profile import read, shared_lines

    found = {}
    for result in results:
        place = folder / result["name"] / "conflict"
        if result["compared"] and result["cell"]["arm"] == arm and "measures" in result and place.is_dir():
            lines = shared_lines(read(place)[0], "layer")
            found[result["cell"]["seed"]] = {line.layer: line.conflict for line in lines}
    return found


def of_conflict(folder: Path, results: list[dict]) -> list[str]:
    """Where the shared transformer's conflict is, and whether separation lowers it in the layers that stay shared."""
    shared = layer_conflicts(folder, results, "shared")
    if not shared:
        return []
    middle = [layer for layer in range(LAYERS) if layer not in ENDS]
    mean, width = mean_and_width(
        [
            statistics.mean(one[layer] for layer in ENDS) - statistics.mean(one[layer] for layer in middle)
            for one in shared.values()
        ]
    )
    side = side_of(mean, width, 1)
    lines = [
        f"Conflict in the shared transformer, first two layers and last one less the {len(middle)} between (paper: higher "
        f"at both ends): {number(mean, width)}. {verdict([side], 'better', 'worse')}"
    ]
    parts, sides = [], []
    for arm in UNI_X:
        own = layer_conflicts(folder, results, arm)
        less = [
            statistics.mean(own[seed][layer] - shared[seed][layer] for layer in own[seed])
            for seed in own
            if seed in shared
        ]
        if less:
            mean, width = mean_and_width(less)
            sides.append(side_of(mean, width, -1))
            parts.append(f"{WORDS[arm]} {number(mean, width)}")
    if parts:
        lines.append(
            "Conflict in the layers that Uni-X still shares, less that of the same layers of the shared transformer "
            f"(paper: lower): {', '.join(parts)}. {verdict(sides, 'better', 'worse')}"
        )
    return lines


def whole_entropies(folder: Path) -> list[dict[str, str]]:
    """Lines of entropy.csv on all the data; none where it was not measured."""
    path = folder / "entropy" / "entropy.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if float(row["share"]) == 1.0]


def of_entropy(folder: Path) -> list[str]:
    """Whether an image code has higher conditional entropy than a text token, order by order.

    The plug-in estimate errs downwards: where that of pictures is above all of text's intervals, more data would not turn it.
    Below text they are only taken to be where most of the n-grams that there are were seen.
    """
    rows = whole_entropies(folder)
    parts, sides = [], []
    for n in sorted({int(row["n"]) for row in rows}):
        texts = [row for row in rows if int(row["n"]) == n and row["modality"] == "text"]
        pictures = [row for row in rows if int(row["n"]) == n and row["modality"] == "image"]
        if not texts or not pictures or n > 4:  # the paper's figures of pictures end at 4
            continue
        one, seen = pictures[0], min(float(row["coverage"]) for row in (*pictures, *texts))
        if float(one["plug_in"]) > max(float(row["high"]) for row in texts):
            side = "higher"
        elif float(one["high"]) < min(float(row["plug_in"]) for row in texts) and seen >= 0.9:
            side = "lower"
        else:
            side = "cannot be told"
        sides.append(side)
        values = [float(row["corrected"]) for row in texts]
        parts.append(f"n = {n}: {float(one['corrected']):.2f} against {min(values):.2f} to {max(values):.2f}, {side}")
    words = (
        "Entropy of a picture code and of a text token given the n - 1 before it, in bits (paper: pictures higher): "
    )
    return [words + "; ".join(parts) + ". " + verdict(sides, "higher", "lower")] if parts else []
