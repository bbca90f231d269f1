"""Pipeline split: layers into stages so that the slowest stage is as fast as possible within the memory limit.

Stages are contiguous, and their time and memory grow with every layer, so for given limits it is optimal to fill stages
from the first on; the smallest feasible limits are found by bisection.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from pretrain.planning.memory import PipelineStage

MEBIBYTE = 2**20
OfStage = Callable[[int, int, int], float]  # (place of the stage, first layer, layers) -> seconds or bytes


def stages_of(counts: Sequence[int]) -> list[PipelineStage]:
    """Stages with these numbers of layers; the first has the embedding, the last the LM head."""
    last = len(counts) - 1
    return [PipelineStage(sum(counts[:place]), count, place == 0, place == last) for place, count in enumerate(counts)]


def layout_string(stages: Sequence[PipelineStage]) -> str:
    """Stages as a `parallel.layout` string, as in "Ett|tttt|ttL"; "" for a single stage, which needs no layout."""
    return "|".join(stage.written for stage in stages) if len(stages) > 1 else ""


def fill(layers: int, pipeline: int, fits: Callable[[int, int, int], bool]) -> list[int] | None:
    """Layers of each stage, earlier ones as full as `fits(place, first layer, layers)` allows; None if layers are left
    over.

    Every stage between the ends has at least one layer; those at the ends may have the embedding or the head alone.
    """
    counts, first = [], 0
    for place in range(pipeline):
        last = place == pipeline - 1
        between = max(0, pipeline - place - 2)  # stages that still need a layer
        most = layers - first - between
        least = most if last else 0 if place == 0 else 1
        if most < least or not fits(place, first, least):
            return None
        steps = range(least + 1, most + 1)
        counts.append(least + bisect_left(steps, True, key=lambda count: not fits(place, first, count)))
        first += counts[-1]
    return counts


def balance(layers: int, pipeline: int, seconds: OfStage, memory: OfStage, limit: float) -> list[int] | None:
    """Layers of each stage with the fastest slowest stage within `limit` bytes, then the least memory.

    `seconds` may depend on whether a stage is the first, the last or another, not on its place between. None where no
    cut fits.
    """

    def cut(time_limit: float, memory_limit: float) -> list[int] | None:
        def fits(place: int, first: int, count: int) -> bool:
            return seconds(place, first, count) <= time_limit and memory(place, first, count) <= memory_limit

        return fill(layers, pipeline, fits)

    if cut(float("inf"), limit) is None:
        return None
    places = {0, min(1, pipeline - 1), pipeline - 1}
    times = sorted(
        {
            seconds(place, first, count)
            for place in places
            for first in range(layers + 1)
            for count in range(layers - first + 1)
        }
    )
    fastest = times[bisect_left(times, True, key=lambda time: cut(time, limit) is not None)]
    sizes = range(int(limit / MEBIBYTE) + 1)
    least = bisect_left(sizes, True, key=lambda size: cut(fastest, size * MEBIBYTE) is not None)
    return cut(fastest, least * MEBIBYTE) or cut(fastest, limit)
