"""Number of layers to separate at each end, from a conflict profile and a parameter budget."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.system.errors import UserError

DRAWS = 2000  # profiles
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Conflict:
    """Conflict of one layer: estimate and standard error."""

    value: float
    error: float

    @property
    def counted(self) -> float:
        """The estimate; 0 unless it differs significantly from 0."""
        return self.value if self.value > NORMAL_95 * self.error else 0.0


def conflicts_of(path: Path, matrix: str) -> list[Conflict]:
    """Conflict of every layer, first to last. Raises UserError unless all layers are shared."""
    from tools.analysis.conflict_profile import read, shared_lines

    lines, _, model = read(path)
    kinds = model.get("layer_kinds") if isinstance(model, dict) else None
    if not isinstance(kinds, list):
        raise UserError(f"{path}: is no conflict profile (no layer_kinds of a model): measure the model again")
    if set(kinds) != {"shared"}:
        raise UserError(
            f"{path}: is of a model with {sorted(set(kinds))} layers: measure one whose layers are all shared"
        )
    found = {
        layer: [line for line in shared_lines(lines, matrix) if line.layer == layer] for layer in range(len(kinds))
    }
    for layer, of_layer in found.items():
        if len(of_layer) != 1:
            count = f"{len(of_layer)} lines" if of_layer else "no line"
            raise UserError(f"{path}: has {count} of layer {layer}: measure the model again")
        if not all(map(math.isfinite, (of_layer[0].conflict, of_layer[0].low, of_layer[0].high))):
            raise UserError(
                f"{path}: layer {layer} has conflict {of_layer[0].conflict:g} ({of_layer[0].low:g} to "
                f"{of_layer[0].high:g}): measure the model again, with more targets"
            )
    return [Conflict(line.conflict, (line.high - line.low) / 2 / NORMAL_95) for (line,) in found.values()]


def best_ends(counted: Sequence[float], most: int) -> tuple[int, int]:
    """(shallow, deep) with the largest sum of conflict, with at most `most` layers; the fewest layers that reach it."""
    layers = len(counted)
    before = [0.0]
    for value in counted:
        before.append(before[-1] + value)
    choices = [(s, d) for s in range(min(most, layers) + 1) for d in range(min(most, layers) - s + 1)]
    return max(choices, key=lambda c: (round(before[c[0]] + before[-1] - before[layers - c[1]], 9), -c[0] - c[1], c[0]))


def propose(conflicts: Sequence[Conflict], budget: float, seed: int = 0) -> dict:
    """Proposal with its evidence. budget: layers that may be doubled, as a share of all. Raises UserError."""
    layers = len(conflicts)
    most = int(budget * layers + 1e-9) if 0 < budget <= 1 else 0
    if most < 1:
        raise UserError(
            f"--budget {budget:g}: pays for none of {layers} layers, or is no share: give {1 / layers:.3g} to 1"
        )
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
    """The proposal in words."""
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
