#!/usr/bin/env python
"""Benchmark of command start-up: CPU seconds until a missing input is refused, and until libraries are loaded.

Each is a fresh process of this checkout and of another, in turns; the median of the repetitions. CPU seconds, because a
machine that others use too changes them little; files are in the page cache after the first turn, which is not counted.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import argparse
import os
import resource
import statistics
import subprocess

from pretrain.system.errors import run_command
from tools.benchmarks.checkouts import FIRST_OF

VQ = f"{FIRST_OF}\nfrom tokenization.shard_images import open_vq; open_vq('openmoji-64', None)"
MODEL = (
    "import pathlib; first_of('tools.export.folder', 'tools.export_folder'); "
    "importlib.import_module(next(f'model.hf.{path.stem}' for path in pathlib.Path('model/hf').glob('modeling_*.py')))"
)
CASES = {
    "train.py, data absent": [
        "pretrain/train.py",
        "--config",
        "pretrain/configs/demo.yaml",
        "data.sources=[{path: /absent}]",
    ],
    "convert_to_hf.py, checkpoint absent": [
        "tools/convert_to_hf.py",
        "--checkpoint",
        "/absent",
        "--output",
        "/absent/out",
    ],
    "generate.py, model absent": [
        "tools/generate.py",
        "--model",
        "/absent",
        "--prompt",
        "a",
        "--output",
        "/absent/out",
    ],
    "serve.py, model absent": ["tools/serve.py", "--model", "/absent"],
    "shard_images.py, VQ absent": [
        "tokenization/shard_images.py",
        "--input",
        "docs",
        "--output",
        "/absent/out",
        "--vq",
        "/absent",
        "--tokenizer",
        "docs",
    ],
    "train.py, libraries": [
        "-c",
        "from pretrain import runtime; runtime.install(); import pretrain.start, pretrain.engines.megatron",
    ],
    "shard_images.py, libraries": ["-c", f"{VQ}; from tokenization.parts import mds_writer; mds_writer()"],
    "convert_to_hf.py, libraries": [
        "-c",
        f"{VQ}; import pretrain.sharded_files; first_of('tools.export.model_card', 'tools.model_card')",
    ],
    "generate.py, libraries": [
        "-c",
        f"{VQ}; {MODEL}; first_of('tools.generation.results', 'tools.generation_results')",
    ],
    "serve.py, libraries": [
        "-c",
        f"{VQ}; {MODEL}; import tools.serving.app, tools.serving.worker, tools.serving.service",
    ],
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/benchmarks/start_up.py --base ../other-checkout --repeats 3",
    )
    parser.add_argument("--base", type=Path, help="another checkout to measure beside this one")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name has these words")
    return parser.parse_args()


def cpu_seconds(checkout: Path, words: list[str]) -> float:
    """User and system seconds of a fresh process with one OpenMP thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    subprocess.run([sys.executable, *words], cwd=checkout, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure each case, print a table."""
    arguments = parse_arguments()
    sides = {"base": arguments.base.absolute(), "here": ROOT} if arguments.base else {"here": ROOT}
    print("| CPU seconds | " + " | ".join(sides) + (" | here / base |" if arguments.base else " |"))
    print("|---|" + "---|" * (len(sides) + bool(arguments.base)))
    for name, words in CASES.items():
        if arguments.only not in name:
            continue
        turns = [
            {side: cpu_seconds(checkout, words) for side, checkout in sides.items()}
            for _ in range(arguments.repeats + 1)
        ]
        took = [statistics.median(turn[side] for turn in turns[1:]) for side in sides]
        ratio = f" {took[1] / took[0]:.2f} |" if arguments.base else ""
        print(f"| {name} | " + " | ".join(f"{seconds:.2f}" for seconds in took) + f" |{ratio}", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
