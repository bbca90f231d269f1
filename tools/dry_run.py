#!/usr/bin/env python
"""Dry run of one training step of a configuration, as its GPUs would make it, on a machine without GPUs.

The real engine runs on FakeTensors of a fake GPU, in a process group that sends nothing, once for a rank of each pipeline
stage. Errors of device or dtype show here. It prints the peak memory, next to the count of tools/plan_parallel.py, the
largest tensors at the peak, the FLOPs of the matrix products, the bytes of each collective, and the host synchronizations.
Speed is not measured. Engine megatron only.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import dataclasses
import json
import re
from collections.abc import Iterator

from pretrain.system.errors import UserError, run_command
from pretrain.system.output_file import check_output_file

GIB = 2**30


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/dry_run.py pretrain/configs/pretrain_3b.yaml --gpus 8 data.sequence_length=20480",
    )
    parser.add_argument("config", help="YAML file of a run; pretrain/configs has complete ones")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    parser.add_argument("--gpus", type=int, required=True, help="devices of the run")
    parser.add_argument(
        "--document",
        type=int,
        nargs=2,
        metavar=("TEXT", "VISION"),
        help="tokens of the documents that fill a row (default: 64 1025, or half a row each)",
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    words = [
        word for word in sys.argv[1:] if re.match(r"\w+(\.\w+)+=", word)
    ]  # argparse takes them only next to CONFIG
    arguments = parser.parse_args([word for word in sys.argv[1:] if word not in words])
    arguments.overrides += words
    if arguments.gpus < 1:
        raise UserError(f"--gpus {arguments.gpus}: must be at least 1")
    check_output_file(arguments.json, "--json")
    return arguments


def figures_of(arguments: argparse.Namespace) -> list[dict]:
    """Measurements of a rank of each stage. Raises UserError for a layout that is not possible."""
    from pretrain.config import load_config
    from pretrain.engines import ENGINES, that_have
    from pretrain.parallel import check_layout
    from pretrain.planning.shape import row_shape, sizes_of_data
    from pretrain.process_ranks import check_world
    from pretrain.rows import RowSize
    from pretrain.setup import sized_config

    config = load_config(arguments.config, arguments.overrides)
    if not ENGINES[config.run.engine].dry_run:
        raise UserError(
            f"{arguments.config}: run.engine is {config.run.engine}: a dry run knows run.engine={that_have('dry_run')} alone"
        )
    if config.run.kernels != "torch":
        raise UserError(
            f"{arguments.config}: run.kernels is {config.run.kernels}, whose kernels a dry run cannot imitate: add "
            "run.kernels=torch run.fp8=none"
        )
    RowSize(config.data.sequence_length, config.data.row_multiple).check()
    model = sized_config(config.model, *sizes_of_data(config, 0, 0), special=(0, 1, 2))
    check_layout(config.parallel, model)
    check_world(config, arguments.gpus)
    shape = row_shape(config.data.sequence_length, arguments.document)

    from pretrain.dry_run import fake_gpu

    fake_gpu.install()
    from pretrain.dry_run.step import dry_step
    from pretrain.planning.expected import expected_ranks

    per_stage = arguments.gpus // config.parallel.pipeline
    data_ranks = per_stage // config.parallel.tensor
    planned = expected_ranks(config, model, shape, data_ranks)
    found = []
    for stage, count in enumerate(planned):
        seen = dry_step(config, model, shape, arguments.gpus, stage * per_stage)
        found.append(
            {
                "stage": stage + 1,
                "planned": count.total,
                "planned_static": count.static.total,
                **dataclasses.asdict(seen),
            }
        )
    return found


def report(found: list[dict]) -> Iterator[str]:
    """The lines to print."""
    from tools.reports.text_table import table

    head = [
        "stage",
        "static GiB",
        "planned",
        "kept of rows",
        "peak",
        "planned",
        "TFLOP",
        "host reads",
        "waits",
        "copies",
    ]
    rows = [head]
    for each in found:
        sizes = (each[name] / GIB for name in ("static", "planned_static", "kept", "peak", "planned"))
        counts = (sum(each["reads"].values()), each["synchronised"], each["copies"])
        rows.append(
            [str(each["stage"]), *(f"{size:.2f}" for size in sizes), f"{each['flops'] / 1e12:,.0f}", *map(str, counts)]
        )
    yield from table(rows)
    for each in found:
        yield f"\nstage {each['stage']}: sent in a step, GiB by collective"
        yield "  " + (", ".join(f"{name} {size / GIB:.3f}" for name, size in each["sent"].items()) or "nothing")
        yield f"  largest tensors at the peak ({each['peak_phase']}), GiB"
        yield from (f"  {size / GIB:6.2f}  {what}" for size, what in each["at_peak"])


def main() -> int:
    """Run and print."""
    arguments = parse_arguments()
    found = figures_of(arguments)
    print("\n".join(report(found)))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_command(main)
