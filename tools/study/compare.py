"""What finished cells say of the arms: means and intervals over seeds, and differences between arms, paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tools.study.plan import WORDS

STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # two-sided quantile of Student's t for n values
PAPER_AVERAGES = {"shared": 38.0, "mot": 34.6, "unix_both": 41.6}
MEASURES = {  # name -> (heading, digits); differences are of these
    "text": ("text loss", 3),
    "names": ("name loss", 3),
    "pictures": ("picture loss", 3),
    "retrieval": ("text to picture, held out", 3),
    "naming": ("picture to text, held out", 3),
    "retrieval_seen": ("text to picture, trained on", 3),
    "naming_seen": ("picture to text, trained on", 3),
    "conflict": ("conflict of shared weights", 3),
}


def values_of(result: dict) -> dict[str, float]:
    """The measures of a finished comparison cell by name."""
    measures = result["measures"]
    losses = {name: part["loss"] for name, part in measures["losses"].items()}
    text = [value for name, value in losses.items() if name.startswith("text_")]
    pairs = measures["pairs"]
    return {
        "text": statistics.mean(text),
        **losses,
        "retrieval": pairs["heldout"]["text_to_picture"]["accuracy"],
        "naming": pairs["heldout"]["picture_to_text"]["accuracy"],
        "retrieval_seen": pairs["train"]["text_to_picture"]["accuracy"],
        "naming_seen": pairs["train"]["picture_to_text"]["accuracy"],
        "conflict": measures["conflict"],
        "parameters_total": measures["parameters"]["total"],
        "parameters_activated": measures["parameters"]["activated"],
        "tokens_per_second": result["tokens_per_second"],
    }


def mean_and_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval (Student's t); nan where one value says nothing of the spread."""
    if len(values) < 2:
        return (values[0] if values else float("nan")), float("nan")
    width = STUDENT_95.get(len(values), 1.96) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), width


def finished(results: list[dict]) -> dict[str, dict[int, dict[str, float]]]:
    """arm -> seed -> measures, of comparison cells that are done."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for result in results:
        if "measures" in result:
            found.setdefault(result["cell"]["arm"], {})[result["cell"]["seed"]] = values_of(result)
    return found


def number(mean: float, width: float, digits: int) -> str:
    """As a cell of a table: mean, and the interval where it is known."""
    if mean != mean:
        return "-"
    return f"{mean:.{digits}f}" + ("" if width != width else f" ± {width:.{digits}f}")


def paired(arms: dict, arm: str, base: str, name: str) -> tuple[float, float]:
    """Mean and half interval of a measure of `arm` less that of `base`, over the seeds that both have."""
    pairs = [values[name] - arms[base][seed][name] for seed, values in arms[arm].items() if seed in arms[base]]
    return mean_and_width(pairs)


def answers(arms: dict) -> list[str]:
    """The answer in words: which arms differ from the shared transformer by more than the noise, measure by measure."""
    lines = []
    for name, (head, _) in MEASURES.items():
        if name == "conflict" or "shared" not in arms:
            continue
        sides: dict[str, list[str]] = {"lower": [], "higher": [], "not told apart": []}
        for arm in arms:
            if arm != "shared":
                mean, width = paired(arms, arm, "shared", name)
                side = "not told apart" if not abs(mean) > width else "lower" if mean < 0 else "higher"
                sides[side].append(WORDS[arm])
        told = [f"{side}: {', '.join(those)}" for side, those in sides.items() if those]
        lines += [f"- {head}, against the shared transformer: {'; '.join(told)}."] if told else []
    return ["## What was found", "", *lines, ""] if lines else []


def differences(arms: dict, base: str) -> list[str]:
    """Each arm less another, seed by seed."""
    if base not in arms:
        return [f"The {WORDS[base]} has no finished cell, so there is nothing to compare with.", ""]
    names = [name for name in MEASURES if name != "conflict"]
    heads = [f"less {WORDS[base]}, paired by seed", *(MEASURES[name][0] for name in names)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for arm in arms:
        if arm == base:
            continue
        cells = []
        for name in names:
            mean, width = paired(arms, arm, base, name)
            mark = "**" if abs(mean) > width else ""
            cells.append(mark + number(mean, width, MEASURES[name][1]) + mark)
        lines.append("| " + " | ".join([WORDS[arm], *cells]) + " |")
    return [*lines, ""]


def of_the_paper(arms: dict) -> list[str]:
    """The paper's averages, which are of other things, and how to read what is bold."""
    averages = ", ".join(f"{WORDS[arm]} {value}" for arm, value in PAPER_AVERAGES.items() if arm in arms)
    return [
        "Bold: the interval does not hold 0. All else is within the noise of the seeds. With so many comparisons about one in "
        f"twenty is bold by chance. The paper's averages are {averages or 'of arms that are not here'} (MMLU, GenEval and MMBench, "
        "Qwen2.5-1.5B, 28B tokens): no measure of ours, and of one seed; its Mixture-of-Transformers never used its vision output "
        "projection and shared the norms, ours does not.",
        "",
    ]
