"""Command line of `train_vq.py`: what cannot become an image tokenizer is refused before any picture is read."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from pretrain.system.errors import UserError
from tokenization.vq_base import LARGEST_CODEBOOK
from tokenization.vq_files import read_json

GROUPS = 16  # group size of its normalizations: widths are multiples of it
DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "channels": [16, 32, 96, 160],
    "codebook_size": 1024,
    "code_channels": 16,
}
"""Of what --start says itself."""


def parse_arguments(description: str = "") -> argparse.Namespace:
    """Read the command line. Raises UserError for a --start that cannot be read."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tokenization/train_vq.py --train work/corpus/train/folder "
        "--heldout work/corpus/heldout/folder --output work/vq --steps 4000",
    )
    parser.add_argument(
        "--train", nargs="+", required=True, metavar="PATH", help="pictures: a folder, or an input of shard_images.py"
    )
    parser.add_argument(
        "--heldout", nargs="+", metavar="PATH", help="pictures only measured on (default: 5 %% of --train)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights (diffusers format)")
    parser.add_argument("--start", type=Path, help="folder of an earlier run, whose weights are trained further")
    parser.add_argument("--image-size", type=int, help="picture side in pixels (default: that of --start, else 64)")
    parser.add_argument("--channels", type=int, nargs="+", help="width of each level (default: 16 32 96 160)")
    parser.add_argument("--codebook-size", type=int, help="number of codes (default: 1024)")
    parser.add_argument("--code-channels", type=int, help="length of a code vector (default: 16)")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps (default: 4000)")
    parser.add_argument("--warmup-steps", type=int, default=300, help="steps without quantisation (default: 300)")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures in a step (default: 64)")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: 1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default: 0)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0: the cores that it may use)")
    parser.add_argument(
        "--augment",
        choices=("none", "mirror", "drawings"),
        default="mirror",
        help="mirror half of the pictures; drawings: also turn, scale and move them over white, and swap colours",
    )
    parser.add_argument("--device", help="where to train (default: a GPU if there is one, else cpu)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 where the machine has it"
    )
    parser.add_argument("--memory", type=float, default=2.0, metavar="GB", help="for pictures (default: %(default)s)")
    arguments = parser.parse_args()
    settle_architecture(parser, arguments)
    levels = 2 ** (len(arguments.channels) - 1)
    for name in ("steps", "batch_size", "codebook_size", "code_channels", "image_size"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    for name in ("warmup_steps", "threads", "seed"):
        if not 0 <= getattr(arguments, name) < 1 << 63:
            parser.error(f"--{name.replace('_', '-')} must be 0 or more, in 63 bits, got {getattr(arguments, name)}")
    for name in ("lr", "memory"):
        if not 0 < getattr(arguments, name) < math.inf:
            parser.error(f"--{name} must be above 0, and finite, got {getattr(arguments, name)}")
    if arguments.codebook_size > LARGEST_CODEBOOK:
        parser.error(f"--codebook-size is at most {LARGEST_CODEBOOK}, what shards hold, got {arguments.codebook_size}")
    if arguments.device == "meta":
        parser.error("--device meta has shapes without data: give cpu or cuda")
    if any(width < GROUPS or width % GROUPS for width in arguments.channels):
        parser.error(f"--channels must be multiples of {GROUPS}, got {' '.join(map(str, arguments.channels))}")
    if arguments.image_size % levels:
        parser.error(f"--image-size must be a multiple of {levels}, the pixels per code, got {arguments.image_size}")
    if not capacity_of(arguments):
        parser.error(
            f"--memory {arguments.memory:g} GB holds no picture of --image-size {arguments.image_size}: give more, or smaller pictures"
        )
    if not arguments.start and arguments.steps <= arguments.warmup_steps:
        parser.error(
            f"--steps {arguments.steps} ends within --warmup-steps {arguments.warmup_steps}, in which nothing is quantised"
        )
    return arguments


def settle_architecture(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Fill in what was not given: as --start has it, or the default. Wrong usage if it was given and --start has another."""
    own = architecture_of(arguments.start) if arguments.start else {}
    for name, usual in DEFAULTS.items():
        given = getattr(arguments, name)
        if given is None:
            setattr(arguments, name, own.get(name, usual))
        elif name in own and name != "image_size" and given != own[name]:
            flag, values = (
                f"--{name.replace('_', '-')}",
                [" ".join(map(str, value)) if isinstance(value, list) else value for value in (given, own[name])],
            )
            parser.error(
                f"{flag} {values[0]}: --start {arguments.start} has {values[1]}, and is trained as it is: leave it out"
            )


def architecture_of(folder: Path) -> dict[str, Any]:
    """Arguments that a folder of weights stands for. Raises UserError if it holds no diffusers VQModel."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "VQModel" or not isinstance(config.get("block_out_channels"), list):
        raise UserError(f"--start {folder}: its config.json is of no VQModel: give a folder that train_vq.py wrote")
    keys = {"channels": "block_out_channels", "codebook_size": "num_vq_embeddings", "code_channels": "vq_embed_dim"}
    own = {name: config[key] for name, key in keys.items() if config.get(key) is not None}
    place = folder / "preprocess.json"
    size = read_json(place).get("image_size") if place.exists() else None
    return own | ({"image_size": size} if isinstance(size, int) else {})


def capacity_of(arguments: argparse.Namespace) -> int:
    """Number of images that --memory holds, with their copies of twice the size where needed."""
    each = 3 * arguments.image_size**2 * (5 if arguments.augment == "drawings" else 1)
    return int(arguments.memory * 1e9 / each)
