"""Statistics of finished cells: means and intervals over seeds, and differences between arms, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tools.study.plan import WORDS

STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # two-sided quantile of Student's t for n values
NORMAL_95 = 1.96


@dataclass(frozen=True)
class Measure:
    """One column. `better`: -1 when lower is better, 1 when higher is. Shares are of right answers among few
    questions."""

    words: str
    better: int
    is_share: bool = False

    def number(self, mean: float, width: float) -> str:
        """A number with its interval; a share of some dozens of answers has no third digit."""
        return number(mean, width, 2 if self.is_share else 3)


MEASURES = {
    "text": Measure("text loss", -1),
    "names": Measure("name loss", -1),
    "pictures": Measure("picture loss", -1),
    "retrieval": Measure("find new", 1, is_share=True),
    "naming": Measure("name new", 1, is_share=True),
    "retrieval_seen": Measure("find trained", 1, is_share=True),
    "naming_seen": Measure("name trained", 1, is_share=True),
}
Arms = dict[str, dict[int, dict[str, float]]]  # arm -> seed -> values


def values_of(result: dict) -> dict[str, float]:
    """Measures of a finished comparison cell by name. `questions`: number of questions behind each share."""
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
        "questions": min(part["candidates"] for side in pairs.values() for part in side.values()),
        "conflict": measures["conflict"],
        "parameters_total": measures["parameters"]["total"],
        "parameters_activated": measures["parameters"]["activated"],
        "tokens_per_second": result["tokens_per_second"],
    }


def mean_and_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval (Student's t); nan for a single value."""
    if any(math.isnan(value) for value in values):  # statistics.stdev cannot take one
        return math.nan, math.nan
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    width = STUDENT_95.get(len(values), NORMAL_95) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), width


def width_of_questions(share: float, questions: float) -> float:
    """Half of a binomial 95 % interval of a share of right answers.

    Agresti and Coull (1998): not 0 when all or no answers are right. All seeds and arms answer the same questions, so that
    more seeds do not make it narrower.
    """
    asked = questions + NORMAL_95**2
    middle = (share * questions + NORMAL_95**2 / 2) / asked
    return NORMAL_95 * math.sqrt(middle * (1 - middle) / asked)


def summary(by_seed: dict[int, dict[str, float]], name: str) -> tuple[float, float]:
    """Mean over seeds of one measure of one arm, and half of its interval."""
    mean, width = mean_and_width([values[name] for values in by_seed.values()])
    if MEASURES[name].is_share and by_seed:
        width = math.hypot(width, width_of_questions(mean, _questions(by_seed)))
    return mean, width


def paired(arms: Arms, arm: str, base: str, name: str) -> tuple[float, float]:
    """Mean and half interval of the paired difference of `arm` and `base`, over the seeds that both have.

    The chance of the questions counts as if the arms were asked different ones, which makes the interval wider.
    """
    both = [seed for seed in arms[arm] if seed in arms[base]]
    mean, width = mean_and_width([arms[arm][seed][name] - arms[base][seed][name] for seed in both])
    if MEASURES[name].is_share and both:
        for one in (arm, base):
            share = statistics.mean(arms[one][seed][name] for seed in both)
            width = math.hypot(width, width_of_questions(share, _questions(arms[one])))
    return mean, width


def _questions(by_seed: dict[int, dict[str, float]]) -> float:
    return min(values["questions"] for values in by_seed.values())


def side_of(mean: float, width: float, better: int) -> str:
    """Side of a difference: "better", "worse", or "not told apart" when its interval contains 0 or is not known."""
    if not abs(mean) > width:
        return "not told apart"
    return "better" if mean * better > 0 else "worse"


def finished(results: list[dict]) -> Arms:
    """arm -> seed -> measures, of finished comparison cells."""
    found: Arms = {}
    for result in results:
        if "measures" in result and result["compared"]:
            found.setdefault(result["cell"]["arm"], {})[result["cell"]["seed"]] = values_of(result)
    return found


def number(mean: float, width: float, digits: int = 3) -> str:
    """A table cell: mean, and the interval where it is known."""
    if mean != mean:
        return "-"
    mean = round(mean, digits) + 0.0  # -0.0 would be printed with its sign
    return f"{mean:.{digits}f}" + ("" if width != width else f" ± {width:.{digits}f}")


def results_table(arms: Arms) -> list[str]:
    """A line for each arm: each measure with its interval."""
    lines = [
        "| arm | " + " | ".join(measure.words for measure in MEASURES.values()) + " |",
        "|---" * (len(MEASURES) + 1) + "|",
    ]
    for arm, by_seed in arms.items():
        cells = [measure.number(*summary(by_seed, name)) for name, measure in MEASURES.items()]
        lines.append("| " + " | ".join([WORDS[arm], *cells]) + " |")
    return [*lines, ""]


def differences(arms: Arms, base: str) -> list[str]:
    """Differences of each arm to another, paired by seed; bold where the interval excludes 0."""
    if base not in arms:
        return [f"The {WORDS[base]} has no finished cell, so there is nothing to compare with.", ""]
    heads = [f"less {WORDS[base]}", *(measure.words for measure in MEASURES.values())]
    lines, bold = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"], 0
    for arm in arms:
        if arm == base:
            continue
        cells = []
        for name, measure in MEASURES.items():
            mean, width = paired(arms, arm, base, name)
            mark = "**" if abs(mean) > width else ""
            bold += bool(mark)
            cells.append(mark + measure.number(mean, width) + mark)
        lines.append("| " + " | ".join([WORDS[arm], *cells]) + " |")
    made = (len(arms) - 1) * len(MEASURES)
    return [
        *lines,
        "",
        f"Bold: the interval does not hold 0, in {bold} of {made} comparisons; were all arms equal, about "
        f"{0.05 * made:.0f} would be bold by chance.",
        "",
    ]
