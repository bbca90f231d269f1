#!/usr/bin/env python
"""Check and measure this build on one GPU, in at most eight minutes, without a network: `make gpu-check`.

Exactness of every kind of layer in fp32 and bf16 against float64; what the card reaches by itself; time, tokens a second, share
of that peak and memory of training steps of the 3B's layers; waits of the host in a step; the ten longest kernels; steps with
transformer-engine's kernels and FP8, where they are installed; the price of run.deterministic; pictures a second of a full-size
image tokenizer; codes a second of generation; decoding with several caches and CUDA graphs; with --against, another checkout
in turn with this one. Without a GPU the same functions run at a small size, which shows that they work and no more.

Results are on disk after every section: gpu_check.json, and gpu_check.md as a table, which says what was not run and why.
`make gpu-check-wheels` gathers what a machine with torch (2.11 or later, Python 3.12) and nothing else of this project needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import argparse
import json
import os
import shlex
import time
import traceback

from pretrain.system.errors import run_command
from tokenization.files import output_folder, write_text


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/gpu_check.py --output work/gpu-check --against ../before",
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("work/gpu-check"), help="folder for the results (default: %(default)s)")
    add("--minutes", type=float, default=8.0, help="no section begins after so many (default: %(default)g)")
    add("--model", choices=("tiny", "small", "3b"), default="", help="size (default: 3b on a GPU, tiny on a CPU)")
    add("--against", type=Path, help="another checkout of this project: its steps are measured in turn with these")
    return parser.parse_args()


def sections(setting, against: Path | None, found: dict) -> list[tuple[str, Callable[[], Any]]]:
    """(name, function without arguments) of each measurement, most important first."""
    from tools.benchmarks.gpu import decoding, pictures, steps
    from tools.benchmarks.gpu.setting import NotRun

    def compare() -> dict:
        if against is None:
            raise NotRun("no other checkout was named with --against")
        return steps.against(setting, against, ROOT)

    peak = lambda: found.get("ceilings", {}).get("tflops") or float("nan")  # noqa: E731
    return [
        ("ceilings", lambda: steps.ceilings(setting)),
        ("exactness", lambda: steps.exactness(setting)),
        ("steps", lambda: steps.steps(setting, peak())),
        ("host reads and kernels", lambda: steps.host_reads(setting)),
        ("kernels", lambda: steps.kernels(setting)),
        ("against", compare),
        ("pictures to codes", lambda: pictures.encoding(setting)),
        ("drawing", lambda: pictures.drawing(setting)),
        ("decoding", lambda: decoding.decoding(setting)),
        ("run.deterministic", lambda: steps.deterministic(setting)),
    ]


def run(arguments: argparse.Namespace) -> int:
    """Run section by section; a failure is reported, and the others go on -> the exit code."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler prints when it starts and stops
    import torch

    from model import gpu_kernels
    from pretrain import machine, runtime
    from pretrain.system.light_imports import leave_torchvision_out
    from tools.benchmarks.gpu.setting import NotRun, setting_of
    from tools.benchmarks.gpu.steps import clear

    begun = time.monotonic()
    leave_torchvision_out()
    runtime.settle_devices(tensor=1)
    runtime.install()
    runtime.start_distributed(seed=0)
    setting = setting_of("cuda" if torch.cuda.is_available() else "cpu", arguments.model)
    record: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine.describe(),
        "setting": vars(setting),
        "sections": {},
        "not run": {},
        "failed": {},
        "seconds": {},
    }
    if not setting.gpu:
        record["not run"]["GPU"] = "torch finds none here: sizes are small, and no time says anything about one"
    for name, measure in sections(setting, arguments.against, record["sections"]):
        start = time.monotonic()
        if start - begun > 60 * arguments.minutes:
            record["not run"][name] = f"the {arguments.minutes:g} minutes were over"
            continue
        try:
            record["sections"][name] = measure()
        except NotRun as reason:
            record["not run"][name] = str(reason)
        except Exception as error:  # a failing section does not affect the others
            record["failed"][name] = "".join(traceback.format_exception(error)).strip()
        clear(setting)
        record["seconds"][name] = round(time.monotonic() - start, 1)
        record["compiled"] = gpu_kernels.in_use(torch.device(setting.device))
        write(arguments.output, record)
        print(f"{name}: {record['seconds'][name]:g} s", file=sys.stderr, flush=True)
    write(arguments.output, record)
    print(table(record))
    wrong = [name for name, each in record["sections"].get("exactness", {}).items() if not each["within"]]
    return 1 if record["failed"] or wrong else 0


def write(output: Path, record: dict) -> None:
    """Write the record so far, as JSON and as a table."""
    write_text(output / "gpu_check.json", json.dumps(record, indent=1) + "\n")
    write_text(output / "gpu_check.md", table(record))


def table(record: dict) -> str:
    """The record as Markdown."""
    machine, sections = record["machine"], record["sections"]
    where = machine.get("gpus") or f"CPU {machine['processor']} ({machine['capability']}, {machine['threads']} threads)"
    lines = [
        "# GPU check",
        "",
        f"`{record['command']}` on {where}; "
        + ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
        + ".",
        "",
    ]
    if record["not run"] or record["failed"]:
        lines += ["| not run | why |", "|---|---|"]
        lines += [f"| {name} | {why} |" for name, why in record["not run"].items()]
        lines += [f"| {name} | **failed**: {error.splitlines()[-1]} |" for name, error in record["failed"].items()] + [
            ""
        ]
    if "ceilings" in sections:
        found = sections["ceilings"]
        lines += [
            f"By itself: products {found['product']} {found['tflops']} TFLOP/s, copies {found['copy_gb_per_s']} GB/s.",
            "",
        ]
    if record.get("compiled"):
        lines += [f"With `run.kernels: torch` {record['compiled']}.", ""]
    lines += rows_of(sections.get("exactness"), ("loss_off", "norm_off", "within"), "layers and precision")
    lines += rows_of(
        sections.get("steps"),
        ("seconds", "tokens_per_s", "tflops", "of_measured_peak", "peak_gib"),
        "precision and tokens",
    )
    lines += rows_of(sections.get("against"), ("times_faster", "range", "peak_gib"), "tokens")
    if "host reads and kernels" in sections:
        found = sections["host reads and kernels"]
        lines += [
            "Waits in a step: " + ", ".join(f"{name} {count}" for name, count in found["reads"].items()) + ".",
            "",
            "| kernel | calls | share |",
            "|---|---|---|",
        ]
        lines += [f"| `{each['kernel']}` | {each['calls']} | {each['share']:.1%} |" for each in found["longest"]] + [""]
    lines += rows_of(sections.get("drawing"), ("ms_per_code", "codes_per_s"), "drawing")
    lines += rows_of(sections.get("decoding"), ("ms_per_token", "off", "not run"), "decoding")
    lines += rows_of(sections.get("kernels"), ("seconds", "loss_off", "not run"), "kernels, bf16")
    for name in ("pictures to codes", "run.deterministic"):
        if name in sections:
            lines += [f"{name}: " + ", ".join(f"{key} {value}" for key, value in sections[name].items()) + ".", ""]
    return "\n".join(lines)


def rows_of(found: dict | None, columns: tuple[str, ...], head: str) -> list[str]:
    """Lines of a table of results by name, without empty columns."""
    if not found:
        return []
    shown = [column for column in columns if any(column in each for each in found.values())]
    lines = [f"| {head} | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for name, each in found.items():
        lines.append(f"| {name} | {' | '.join(word(each.get(column)) for column in shown)} |")
    return [*lines, ""]


def word(value: object) -> str:
    """A number in a table."""
    if isinstance(value, list):
        return " to ".join(map(word, value))
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def main() -> int:
    """Make the folder, and measure."""
    arguments = parse_arguments()
    output_folder(arguments.output)
    return run(arguments)


if __name__ == "__main__":
    run_command(main)
