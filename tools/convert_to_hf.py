#!/usr/bin/env python
"""Export a training checkpoint as a Hugging Face folder that generates text and images.

Any layout's checkpoint will do, without the processes that wrote it: tensors are read and written one at a time. The
folder holds the weights under Qwen's names, the model's code, the text tokenizer, the image tokenizer and the
prompts, so it needs neither this repository nor the run. It is published whole, by one rename.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from pretrain.system.errors import UserError, run_command
from tools.export.from_checkpoint import (
    check_output,
    export,
    export_text,
    export_text_of,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/convert_to_hf.py --checkpoint work/demo/run --output work/demo/model",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="run folder (its newest good one) or checkpoint")
    source.add_argument(
        "--export", type=Path, help="an export, a tuned or merged one too, whose text is wanted (--text-only)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make; an export there is replaced")
    parser.add_argument(
        "--results",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="JSON of figures that a tool wrote, for the model card's table; repeatable",
    )
    parser.add_argument("--vq", default="", help="image tokenizer to put in (default: the one that the run names)")
    parser.add_argument(
        "--text-only", action="store_true", help="a plain folder of the base's family without pictures, for other tools"
    )
    return parser.parse_args()


def main_of_export(arguments: argparse.Namespace) -> int:
    """Make the plain text folder of an export."""
    if not arguments.text_only or arguments.vq or arguments.results:
        raise UserError("--export goes with --text-only and --output alone: pictures and cards are of a --checkpoint")
    export_text_of(arguments.export, arguments.output)
    print(f"{arguments.output}: text path of {arguments.export}")
    return 0


def main() -> int:
    """Find the checkpoint, export it."""
    arguments = parse_arguments()
    if arguments.export:
        return main_of_export(arguments)
    from pretrain import checkpoint
    from pretrain.system.light_imports import leave_torchvision_out
    from tokenization.vq import find_folder

    check_output(arguments.output)  # this and what follows it before the seconds that it takes to import torch
    if arguments.vq:
        find_folder(arguments.vq)
    found = checkpoint.find(arguments.checkpoint)
    leave_torchvision_out()
    if arguments.text_only:
        if arguments.vq or arguments.results:
            raise UserError("--text-only goes without --vq and --results: pictures and figures are of the whole export")
        export_text(found, arguments.output)
    else:
        export(found, arguments.output, arguments.vq, arguments.results)
    print(f"{arguments.output}: exported from {found}")
    return 0


if __name__ == "__main__":
    run_command(main)
