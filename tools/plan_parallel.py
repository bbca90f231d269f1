#!/usr/bin/env python
"""Choose a parallel layout: layouts ranked by estimated speed, and why the others are rejected.

Searches all combinations of tensor, sequence, pipeline and data parallelism, with and without recomputation and the
distributed optimizer. Weights, gradients and optimizer state are counted to the byte, activations are counted, and achieved
rates of devices are assumed, so times serve to compare layouts. Stages are split for the best balance. The last line has the
overrides for pretrain/train.py. No data and no devices are needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import math
import re
from collections.abc import Iterator
from dataclasses import fields

from pretrain.config import load_config
from pretrain.parallel import ParallelLayout
from pretrain.system.errors import UserError, run_command

GIB = 2**30
MOST_GPUS = 100_000
MOST_ROWS = 100_000_000  # of an embedding: more are a mistake, and a plan of petabytes
PRODUCTS = 0.55
NOT_CHOSEN = ("overlap", "gradients")  # settings of `parallel` that plans take as they are given
CHOSEN = {f"parallel.{field.name}" for field in fields(ParallelLayout) if field.name not in NOT_CHOSEN} | {"zero.stage"}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/plan_parallel.py pretrain/configs/pretrain_3b.yaml --gpus 16 --gpu-memory 80",
    )
    parser.add_argument("config", help="YAML file of a run; pretrain/configs has complete ones")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    parser.add_argument("--gpus", type=int, required=True, help="devices of the run")
    parser.add_argument("--gpu-memory", type=float, required=True, metavar="GIB", help="memory of a device")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="devices that share a node (default: 8)")
    parser.add_argument(
        "--headroom",
        type=float,
        default=0.1,
        help="share of the memory to leave for the driver, buffers and fragments (default: 0.1)",
    )
    parser.add_argument(
        "--document",
        type=int,
        nargs=2,
        metavar=("TEXT", "VISION"),
        help="tokens of the documents that fill a row (default: 64 1025, or half a row each)",
    )
    parser.add_argument(
        "--text-rows",
        type=int,
        help="id of code 0, where the file does not say (default: the shards', or 151936)",
    )
    parser.add_argument("--codes", type=int, help="picture codes (default: the shards', or 8192)")
    parser.add_argument("--tflops", type=float, default=989.0, help="peak of a device (default: 989, an H100 in bf16)")
    parser.add_argument("--products", type=float, help=f"share of it that matrix products reach (default: {PRODUCTS})")
    parser.add_argument("--memory-speed", type=float, default=2800.0, help="GB/s of its memory (default: 2800)")
    parser.add_argument(
        "--utilisation",
        type=float,
        help="share of the peak that all arithmetic reaches (default: counted from the two above)",
    )
    parser.add_argument(
        "--node-link", type=float, default=300.0, help="GB/s of a device to its node, one direction (default: 300)"
    )
    parser.add_argument(
        "--network-link", type=float, default=40.0, help="GB/s of a device to other nodes (default: 40)"
    )
    parser.add_argument(
        "--measured",
        type=Path,
        metavar="JSON",
        help="cut stages by the part times of tools/bench_step.py --json, not by the FLOP count",
    )
    parser.add_argument("--top", type=int, default=8, help="layouts in the ranked table (default: 8)")
    parser.add_argument(
        "--all", action="store_true", help="rank every layout, not the best one for each tensor x pipeline x data"
    )
    words = [
        word for word in sys.argv[1:] if re.match(r"\w+(\.\w+)+=", word)
    ]  # argparse takes them only next to CONFIG
    arguments = parser.parse_args([word for word in sys.argv[1:] if word not in words])
    arguments.overrides += words
    for name in ("gpus", "gpus_per_node", "top"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least 1")
    if arguments.gpus > MOST_GPUS:
        raise UserError(f"--gpus {arguments.gpus}: must be at most {MOST_GPUS:,}")
    for name in ("products", "utilisation"):
        if (getattr(arguments, name) or 0) > 1:
            raise UserError(f"--{name} {getattr(arguments, name):g}: it is a share of the peak, above 0 to 1")
    for name in ("gpu_memory", "tflops", "products", "memory_speed", "utilisation", "node_link", "network_link"):
        value = getattr(arguments, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be above 0")
    for name in ("text_rows", "codes"):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= MOST_ROWS:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1 and at most {MOST_ROWS:,}")
    if arguments.utilisation and arguments.products:
        raise UserError("--products changes nothing of --utilisation, which all arithmetic reaches: leave one out")
    for word in words:
        if word.partition("=")[0] in CHOSEN:
            raise UserError(f"{word}: is chosen here, over all layouts: leave it out, and give it to pretrain/train.py")
    if not 0 <= arguments.headroom < 1:
        raise UserError(f"--headroom {arguments.headroom:g}: it is a share, from 0 to below 1")
    return arguments


def make_job(arguments: argparse.Namespace):
    """Model, row and devices of the plan. Raises UserError."""
    from pretrain.engines import ENGINES
    from pretrain.planning.cost import Devices, counted_costs, measured_costs
    from pretrain.planning.layouts import PlannerJob
    from pretrain.planning.memory import gradient_width
    from pretrain.planning.shape import row_shape, sizes_of_data
    from pretrain.rows import RowSize
    from pretrain.setup import sized_config

    config = load_config(arguments.config, arguments.overrides)
    RowSize(config.data.sequence_length, config.data.row_multiple).check()
    said = config.model.image_token_offset
    if arguments.text_rows and said not in (0, arguments.text_rows):
        raise UserError(f"--text-rows {arguments.text_rows}: model.image_token_offset is {said}: leave one of them out")
    text_rows, codes = sizes_of_data(config, arguments.text_rows or 0, arguments.codes or 0)
    model = sized_config(config.model, text_rows, codes, special=(0, 1, 2))
    row = row_shape(config.data.sequence_length, arguments.document)
    devices = Devices(
        flops=arguments.tflops * 1e12,
        products=arguments.products or PRODUCTS,
        memory=arguments.memory_speed * 1e9,
        utilisation=arguments.utilisation or 0.0,
        within=arguments.node_link * 1e9,
        between=arguments.network_link * 1e9,
        per_node=arguments.gpus_per_node,
    )
    in_product = ENGINES[config.run.engine].adds_in_products
    half = config.run.precision == "bf16"
    costs = counted_costs(model, row, devices, half, in_product, gradient_width(config.parallel, half))
    if arguments.measured:
        costs = measured_costs(arguments.measured, model, costs)
    usable = int(arguments.gpu_memory * GIB * (1 - arguments.headroom))
    return PlannerJob(config, model, row, arguments.gpus, usable, devices, costs)


def overrides_of(parallel: ParallelLayout, zero: int = 0) -> list[str]:
    """Overrides that make `pretrain/train.py` use this layout, whatever its file says."""
    words = [f"zero.stage={zero}"] if zero else []
    for name, value in vars(parallel).items():
        written = str(value).lower() if isinstance(value, bool) else value
        words.append(f"parallel.{name}={written}" if value != "" else f"parallel.{name}=''")
    return words


def command_line(parallel: ParallelLayout, zero: int = 0) -> str:
    """The overrides quoted for a shell."""
    return " ".join(f'"{word}"' if set(word) & set("|'") else word for word in overrides_of(parallel, zero))


def report(arguments: argparse.Namespace) -> Iterator[str]:
    """The lines to print. Raises UserError when no layout fits."""
    from pretrain.planning.layouts import plan_layouts
    from tools.reports import plan_report

    job = make_job(arguments)
    plans, rejected = plan_layouts(job)
    if not plans:
        raise UserError(why_none(arguments, rejected))
    yield plan_report.summary(job, arguments.config, arguments.gpu_memory)
    shown = (plans if arguments.all else plan_report.best_of_each(plans))[: arguments.top]
    which = "" if arguments.all else " with the best switches of each"
    tried = len(plans) + len(rejected)
    yield f"\nlayouts that fit: {len(plans)} of {tried}; the fastest {len(shown)}{which} (estimated):\n"
    yield from plan_report.ranked(job, shown, job.devices.flops)
    if rejected:
        yield "\nrejected, as tensor x pipeline x data:"
        yield from plan_report.rejections(rejected)
    yield "\nstages of the fastest, on one device of each:\n"
    yield from plan_report.stages(job, plans[0])
    yield "\nfor pretrain/train.py:\n"
    yield command_line(plans[0].parallel, plans[0].zero)


def why_none(arguments: argparse.Namespace, rejected) -> str:
    """One line: the layout that needs least memory, or the first other reason."""
    small = [each for each in rejected if each.needs]
    if not small:
        return f"{arguments.config}: no layout over {arguments.gpus} devices: {rejected[0].reason}"
    least = min(small, key=lambda each: each.needs)
    needs = math.ceil(least.needs / GIB / (1 - arguments.headroom) * 10) / 10
    return (
        f"{arguments.config}: nothing fits {arguments.gpus} x {arguments.gpu_memory:g} GiB: the smallest layout needs "
        f"{needs:.1f} GiB each, with {command_line(least.parallel, least.zero)}; take that, more --gpus, or a shorter data.sequence_length"
    )


def main() -> int:
    """Plan and print."""
    for line in report(parse_arguments()):
        print(line)
    return 0


if __name__ == "__main__":
    run_command(main)
