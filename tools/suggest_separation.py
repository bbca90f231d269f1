#!/usr/bin/env python
"""Propose how many layers to separate at each end, from the conflict profile of a shared model and a parameter budget.

Of all choices of first and last layers that the budget pays for, the one is proposed whose layers have the most
conflict together; a layer whose conflict cannot be told from 0 counts nothing, and what adds nothing is not separated.
The intervals of the profile say how sure the choice is: it is made again and again from profiles drawn from them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.system.errors import UserError, run_command
from tokenization.files import write_text

DRAWS = 2000  # profiles
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Conflict:
    """Of one layer: the estimate and its standard error."""

    value: float
    error: float

    @property
    def counted(self) -> float:
        """0 unless it can be told from 0."""
        return self.value if self.value > NORMAL_95 * self.error else 0.0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/suggest_separation.py --profile work/shared/conflict --budget 0.5",
    )
    parser.add_argument("--profile", type=Path, required=True, help="folder that tools/measure_conflict.py wrote")
    parser.add_argument(
        "--budget",
        type=float,
        required=True,
        help="parameters that may be added, as a share of all layers' (0.5: half of the layers twice)",
    )
    parser.add_argument(
        "--matrix",
        choices=("layer", "attention", "ffn"),
        default="layer",
        help="whose conflict decides (default: layer, attention and feed-forward together)",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the proposal and its evidence")
    return parser.parse_args()


def conflicts_of(path: Path, matrix: str) -> list[Conflict]:
    """Conflict of every layer, first to last. Raises UserError unless all layers are shared."""
    from tools.analysis.conflict_profile import read, shared_lines

    lines, _, model = read(path)
    kinds = model["layer_kinds"]
    if set(kinds) != {"shared"}:
        raise UserError(
            f"{path}: is of a model with {sorted(set(kinds))} layers: measure one whose layers are all shared"
        )
    shown = sorted(shared_lines(lines, matrix), key=lambda line: line.layer)
    return [Conflict(line.conflict, (line.high - line.low) / 2 / NORMAL_95) for line in shown]


def best_ends(counted: Sequence[float], most: int) -> tuple[int, int]:
    """(shallow, deep) whose layers have the largest sum, of at most `most` layers; the fewest layers that reach it."""
    layers = len(counted)
    before = [0.0]
    for value in counted:
        before.append(before[-1] + value)
    choices = [(s, d) for s in range(min(most, layers) + 1) for d in range(min(most, layers) - s + 1)]
    return max(choices, key=lambda c: (round(before[c[0]] + before[-1] - before[layers - c[1]], 9), -c[0] - c[1], c[0]))


def propose(conflicts: Sequence[Conflict], budget: float, seed: int = 0) -> dict:
    """The proposal with its evidence. budget: layers that may be doubled, as a share of all. Raises UserError."""
    layers = len(conflicts)
    most = int(budget * layers + 1e-9)
    if not 0 < budget <= 1 or most < 1:
        raise UserError(f"--budget {budget:g}: pays for {max(0, most)} of {layers} layers: give {1 / layers:.3g} to 1")
    counted = [one.counted for one in conflicts]
    shallow, deep = best_ends(counted, most)
    chooser = random.Random(seed)
    chosen: Counter[tuple[int, int]] = Counter()
    for _ in range(DRAWS):
        drawn = [Conflict(chooser.gauss(one.value, one.error), one.error).counted for one in conflicts]
        chosen[best_ends(drawn, most)] += 1
    total = sum(counted)
    taken = sum(counted[:shallow]) + sum(counted[layers - deep :] if deep else [])
    return {
        "shallow": shallow,
        "deep": deep,
        "budget_layers": most,
        "added_share": (shallow + deep) / layers,
        "conflict_covered": taken / total if total else 0.0,
        "chosen_in": {f"{s}:{d}": times / DRAWS for (s, d), times in chosen.most_common(5)},
        "conflict": [round(one.value, 4) for one in conflicts],
        "counted": [round(value, 4) for value in counted],
    }


def words(found: dict) -> str:
    """The proposal as a person reads it."""
    shallow, deep, layers = found["shallow"], found["deep"], len(found["conflict"])
    lines = [f"{layers} layers, a budget of {found['budget_layers']} more"]
    if not shallow + deep:
        lines.append("no layer's conflict can be told from 0: separate none, or measure with more targets")
        return "\n".join(lines)
    share = found["chosen_in"].get(f"{shallow}:{deep}", 0.0)
    lines += [
        f"proposed: model.shallow={shallow} model.deep={deep} (adds {found['added_share']:.0%} of the layers' "
        f"parameters)",
        f"these layers hold {found['conflict_covered']:.0%} of the conflict that can be told from 0",
        f"drawn again from its intervals, the profile gives the same in {share:.0%} of the cases; most often "
        + ", ".join(f"{ends} ({part:.0%})" for ends, part in found["chosen_in"].items()),
    ]
    if share < 0.5:
        lines.append("so the profile does not decide between these: more blocks or targets make its intervals narrower")
    return "\n".join(lines)


def main() -> int:
    """Propose and print."""
    arguments = parse_arguments()
    found = propose(conflicts_of(arguments.profile, arguments.matrix), arguments.budget)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.output, json.dumps(found, indent=1) + "\n")
    print(words(found))
    return 0


if __name__ == "__main__":
    run_command(main)
