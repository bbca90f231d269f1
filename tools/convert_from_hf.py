#!/usr/bin/env python
"""Make the initial checkpoint of a Uni-X run from a Hugging Face folder.

Reads Qwen2, Qwen2.5, Qwen3 and Llama language models, exports of this project, and the published Uni-X models. Tensors
are read and written one at a time. A training run takes the checkpoint with run.init_from, in any parallel layout, and
model.yaml in it as its model section.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from model.layer_kinds import APART, SEPARATED
from pretrain.system.errors import run_command
from tools.export.base_model import (
    DTYPES,
    convert,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/convert_from_hf.py --hf Qwen2.5-3B --output start-3b --separate 12 6",
    )
    parser.add_argument("--hf", type=Path, required=True, help="folder with config.json and safetensors")
    parser.add_argument(
        "--output", type=Path, required=True, help="checkpoint folder to make; an earlier one is replaced"
    )
    parser.add_argument(
        "--separate",
        type=int,
        nargs=2,
        metavar=("SHALLOW", "DEEP"),
        help="layers of --kind at the input end and at the output end (default: none)",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=0,
        metavar="N",
        help="instead of --separate: the last of each N layers is of --kind (1: all)",
    )
    parser.add_argument(
        "--kind",
        choices=APART,
        default=SEPARATED,
        help="of the layers with vision weights (default: separated, which is Uni-X)",
    )
    parser.add_argument(
        "--vision-init",
        choices=("copy", "random"),
        default="copy",
        help="vision weights of those layers (default: copies of the text ones)",
    )
    parser.add_argument(
        "--new-rows",
        choices=("mean", "random"),
        default="mean",
        help="rows of picture codes: mean of the text rows plus noise (default), or random",
    )
    parser.add_argument("--codebook-size", type=int, default=8192, help="picture codes (default: 8192, Chameleon's)")
    parser.add_argument(
        "--image-token-offset", type=int, default=0, help="id of code 0 (default: the rows of the model's embedding)"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json (default: the one of --hf)")
    parser.add_argument(
        "--add-tokens",
        action="store_true",
        help="add marks of pictures that the tokenizer lacks; the output's then makes shards",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compare logits with those of the base, in float32 (default: up to 2 GB of weights)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="of the weights written (default: as stored)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    return parser.parse_args()


def main() -> int:
    """Convert."""
    print(convert(parse_arguments()))
    return 0


if __name__ == "__main__":
    run_command(main)
