"""Tables of the step benchmark, from measured steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pretrain.flops import RowFlops
from pretrain.row_tensors import Row
from tools.benchmarks.paired import MeasuredStepTime, quartiles
from tools.reports.text_table import table

UNI_X, SHARED_MODEL = "uni_x", "shared"
H100_BF16 = 989e12  # FLOP/s: dense bf16 of an H100 SXM (NVIDIA's data sheet)


def ratios(pairs: Sequence[tuple[MeasuredStepTime, MeasuredStepTime]], part: str, clock: str) -> dict[str, float]:
    """Quartiles of Uni-X's time over the shared model's, pair by pair; `part` and `clock` are fields of `MeasuredStepTime`."""
    seconds = [[getattr(getattr(step, part), clock) for step in pair] for pair in pairs]
    low, middle, high = quartiles([uni_x / shared for uni_x, shared in seconds])
    return {"median": middle, "quarter": low, "three_quarters": high}


def case_figures(
    name: str,
    row: Row,
    pairs: Sequence[tuple[MeasuredStepTime, MeasuredStepTime]],
    flops: dict[str, RowFlops],
    calibrated: float,
    parts: dict[str, dict[str, float]],
    clock: str,
) -> dict:
    """Results of a case in JSON types; `clock` ("cpu" or "wall") is the one that ratios use."""
    models = {}
    for number, model in enumerate((UNI_X, SHARED_MODEL)):
        steps = [pair[number] for pair in pairs]
        whole = statistics.median(getattr(step.whole, clock) for step in steps)
        models[model] = {
            "forward_backward_seconds": statistics.median(getattr(step.forward_backward, clock) for step in steps),
            "step_seconds": whole,
            "step_seconds_wall": statistics.median(step.whole.wall for step in steps),
            "tokens_per_second": len(row.ids) / whole,
            "flops_per_second": flops[model].training / whole,
            "training_flops": flops[model].training,
            "part_seconds": parts[model],
        }
    return {
        "case": name,
        "tokens": len(row.ids),
        "text_tokens": sum(row.lengths["text"]),
        "vision_tokens": sum(row.lengths["vision"]),
        "targets": len(row.targets),
        "pairs": len(pairs),
        "clock": clock,
        "forward_backward_ratio": ratios(pairs, "forward_backward", clock),
        "forward_backward_ratio_wall": ratios(pairs, "forward_backward", "wall"),
        "step_ratio": ratios(pairs, "whole", clock),
        "flop_ratio": flops[UNI_X].training / flops[SHARED_MODEL].training,
        "calibrated_ratio": calibrated,
        "models": models,
    }


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['quarter']:.3f} to {ratio['three_quarters']:.3f})"


def ratio_table(figures: Sequence[dict]) -> list[str]:
    """Uni-X's time over the shared model's: measured, and predicted from FLOPs and from the slices alone."""
    rows = [["forward + backward", "tokens", "pairs", "measured (quartiles)"]]
    rows[0] += ["by FLOPs", "off by", "by slices", "off by", "wall"]
    for case in figures:
        measured = case["forward_backward_ratio"]["median"]
        rows.append([case["case"], f"{case['tokens']:,}", str(case["pairs"]), _spread(case["forward_backward_ratio"])])
        for predicted in (case["flop_ratio"], case["calibrated_ratio"]):
            rows[-1] += [f"{predicted:.3f}", f"{measured / predicted - 1:+.1%}"]
        rows[-1].append(f"{case['forward_backward_ratio_wall']['median']:.3f}")
    return table(rows)


def step_table(figures: Sequence[dict], on_gpu: bool) -> list[str]:
    """Whole steps with the optimizer: seconds, ratio, tokens and model FLOPs per second; on a GPU its utilization
    (MFU)."""
    rows = [["whole step", "Uni-X s", "shared s", "ratio (quartiles)"]]
    for unit in ["tokens/s", "GFLOP/s"] + (["MFU"] if on_gpu else []):
        rows[0] += [f"Uni-X {unit}", f"shared {unit}"]
    for case in figures:
        models = [case["models"][model] for model in (UNI_X, SHARED_MODEL)]
        row = [case["case"], *(f"{model['step_seconds']:.3f}" for model in models), _spread(case["step_ratio"])]
        row += [f"{model['tokens_per_second']:,.0f}" for model in models]
        row += [f"{model['flops_per_second'] / 1e9:,.1f}" for model in models]
        if on_gpu:
            row += [f"{model['flops_per_second'] / H100_BF16:.1%}" for model in models]
        rows.append(row)
    return table(rows)


def part_table(figures: Sequence[dict]) -> list[str]:
    """Share of each part in a step, from the pass with markers; the last column is the total in seconds."""
    parts = list(figures[0]["models"][UNI_X]["part_seconds"])
    rows = [["time per part", "model", *parts, "seconds"]]
    for case in figures:
        for model, name in ((UNI_X, "Uni-X"), (SHARED_MODEL, "shared")):
            seconds = case["models"][model]["part_seconds"]
            total = sum(seconds.values())
            rows.append([case["case"], name, *(f"{seconds[part] / total:.2%}" for part in parts), f"{total:.3f}"])
    return table(rows)
