"""Paired step times of two models, interleaved so that drift of the machine favours neither."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from model.attention import attend
from model.config import ModelConfig
from model.layer_kinds import SEPARATED
from model.routing import Segments, route
from pretrain.engines.megatron import MegatronEngine
from pretrain.row_tensors import Row

LR = 1e-4  # learning rate of the measured steps; their losses do not matter


@dataclass(frozen=True)
class Clocks:
    """Seconds of wall-clock time and of this process's CPU time."""

    wall: float
    cpu: float

    def __sub__(self, other: Clocks) -> Clocks:
        return Clocks(self.wall - other.wall, self.cpu - other.cpu)


def now(device) -> Clocks:
    """The clocks after synchronizing with `device`."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return Clocks(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class MeasuredStepTime:
    """One training step; `forward_backward` is the part of `whole` before the optimizer."""

    forward_backward: Clocks
    whole: Clocks


def timed_step(engine: MegatronEngine, row: Row) -> MeasuredStepTime:
    """Time one step of the engine as in training; the clocks are read four times."""
    inner: list[Clocks] = []

    def run(rows, forward_only):
        start = now(engine.device)
        figures = MegatronEngine._run(engine, rows, forward_only)
        inner.append(now(engine.device) - start)
        return figures

    engine._run = run
    try:
        start = now(engine.device)
        engine.train_step([row], LR)
        whole = now(engine.device) - start
    finally:
        del engine._run
    return MeasuredStepTime(inner[0], whole)


def paired_steps(
    first: Callable[[], MeasuredStepTime], second: Callable[[], MeasuredStepTime], pairs: int, budget: float
) -> list[tuple[MeasuredStepTime, MeasuredStepTime]]:
    """Steps of both, in the order first, second, second, first -> (first, second) pairs. Both must be warmed up.

    Stops after `pairs`, or when `budget` seconds are used up, but not before a block of two.
    """
    start = time.perf_counter()
    measured: list[tuple[MeasuredStepTime, MeasuredStepTime]] = []
    while len(measured) < pairs and (not measured or time.perf_counter() - start < budget):
        a = first()
        b, c = second(), second()
        measured += [(a, b), (first(), c)]
    return measured


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(first quartile, median, third quartile); of two values, the values and their mean."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _seconds(function: Callable[[], object], device, repeats: int = 5, long: float = 2.0) -> float:
    """Median time of one call after a warm-up call; a call of more than `long` seconds is made only once.

    Processor time on a CPU, where others may share the machine.
    """
    times = []
    for _ in range(repeats + 1):
        start = now(device)
        function()
        spent = now(device) - start
        times.append(spent.wall if torch.device(device).type == "cuda" else spent.cpu)
        if times[0] > long:
            return times[0]
    return statistics.median(times[1:])


def attention_seconds(config: ModelConfig, layout: Segments, tokens: int, dtype, device) -> float:
    """Time of forward and backward of one layer's attention over a slice, alone."""
    query, key, value = (
        torch.randn(tokens, heads, config.head_dim, dtype=dtype, device=device, requires_grad=True)
        for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    )
    upstream = torch.randn_like(query)
    inputs = (query, key, value)
    return _seconds(lambda: torch.autograd.grad(attend(*inputs, layout), inputs, upstream), device)


def products_seconds(config: ModelConfig, tokens: int, dtype, device) -> float:
    """Time of forward and backward of one layer's projections and MLP over `tokens`, alone."""
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes = (
        (hidden, width + 2 * keys),
        (width, hidden),
        (hidden, 2 * config.intermediate_size),
        (config.intermediate_size, hidden),
    )
    factors = [
        [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in ((tokens, into), (out, into))]
        for into, out in shapes
    ]
    upstream = [torch.randn(tokens, out, dtype=dtype, device=device) for _, out in shapes]

    def run() -> None:
        for (x, weight), gradient in zip(factors, upstream):
            torch.autograd.grad(torch.nn.functional.linear(x, weight), (x, weight), gradient)

    return _seconds(run, device)


@dataclass(frozen=True)
class SliceSeconds:
    """Times of one layer's attention and matrix products over each slice, measured alone."""

    attention: dict[str, float]  # "document", "text", "vision"
    products: dict[str, float]


def slice_seconds(config: ModelConfig, row: Row, dtype, device) -> SliceSeconds:
    """Measure the slices of `row`."""
    row = row.to(device)
    routing = route(row.positions, row.to_document, row.lengths, config.head_dim, config.rope, dtype)
    counts = {name: sum(row.lengths[name]) for name in ("document", "text", "vision")}
    return SliceSeconds(
        attention={
            name: attention_seconds(config, getattr(routing, name), tokens, dtype, device)
            for name, tokens in counts.items()
        },
        products={name: products_seconds(config, tokens, dtype, device) for name, tokens in counts.items()},
    )


def calibrated_ratio(config: ModelConfig, measured: SliceSeconds, shared_seconds: float) -> float:
    """Ratio of forward and backward of Uni-X to the shared model's, predicted from the slices' times.

    `shared_seconds` is the shared model's. All but attention and products (norms, activations, embedding, head) is
    taken to cost both models the same.
    """
    separated = sum(kind == SEPARATED for kind in config.layer_kinds)
    both = (measured.attention, measured.products)
    saved = sum(seconds["document"] - seconds["text"] - seconds["vision"] for seconds in both)
    return 1 - separated * saved / shared_seconds
