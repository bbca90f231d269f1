"""Command line of `shard_images.py`."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from model.shapes import FITS


def parse_arguments(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, of this process if none is given. Numbers that cannot be are wrong usage."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tokenization/shard_images.py --input work/corpus/train/folder --output work/shards "
        "--vq openmoji-64 --tokenizer work/tokenizer --workers 2",
    )
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files or folders, each PATH or NAME=PATH; NAME (default: the folder's) becomes the documents' source",
    )
    add(
        "--image-root",
        default="",
        metavar="PATH",
        help="folder or URL that the pictures named in records are relative to (default: that of the record's file)",
    )
    add("--output", type=Path, required=True, help="dataset folder to make, or to finish")
    add("--vq", required=True, help="image tokenizer: a shipped name or a folder")
    add("--tokenizer", type=Path, required=True, help="folder with the base model's tokenizer.json")
    add(
        "--workers",
        type=int,
        default=min(8, len(os.sched_getaffinity(0))),
        help="threads that decode and tokenize; 0 means none beside the encoder's (default: %(default)s)",
    )
    add("--job-index", type=int, help="which worker this is, from 0 (default: SLURM_ARRAY_TASK_ID, else 0)")
    add("--job-count", type=int, help="how many workers share the files (default: SLURM_ARRAY_TASK_COUNT, else 1)")
    add("--batch-size", type=int, default=32, help="pictures encoded at once (default: %(default)s)")
    add(
        "--image-size",
        type=int,
        help="side of squares in pixels; other shapes have about that area (default: the image tokenizer's)",
    )
    add(
        "--shapes",
        default="square",
        metavar="SET",
        help="shapes of pictures: square; aspect, eleven from 1:3 to 3:1 with about as many codes; or ratios of width to "
        "height beside the square, as 4:3,3:4 (default: %(default)s)",
    )
    add(
        "--fit",
        choices=FITS,
        default="crop",
        help="what a picture has beyond the nearest shape is cut off, or white is laid beside it (default: %(default)s)",
    )
    add(
        "--draft",
        action="store_true",
        help="decode JPEGs at a half, a quarter or an eighth where that leaves twice the pixels needed: faster for large photographs, "
        "and some codes differ (recorded with the dataset)",
    )
    add("--device", help="where the image tokenizer runs (default: a GPU if there is one, else cpu)")
    add(
        "--max-rejects",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="give up when a larger share of the documents is rejected (default: %(default)s)",
    )
    add(
        "--samples-per-part",
        type=int,
        default=8192,
        help="documents that are published together, the most that a kill can lose (default: %(default)s)",
    )
    filters = parser.add_argument_group("filters; what they put aside counts as rejected")
    add = filters.add_argument
    add("--min-side", type=int, default=0, metavar="PIXELS", help="shorter side of a picture, at least")
    add("--max-aspect", type=float, default=0, metavar="RATIO", help="longer by shorter side, at most")
    add("--min-text", type=int, default=0, metavar="CHARACTERS", help="length of each text, at least")
    add("--max-text", type=int, default=0, metavar="CHARACTERS", help="length of each text, at most")
    add("--max-pixels", type=int, metavar="PIXELS", help="of a picture, by its header (default: 64 million)")
    add(
        "--duplicate-bits",
        type=int,
        default=-1,
        metavar="BITS",
        help="put a picture aside that differs in at most so many of 64 bits of a perceptual hash from an earlier one "
        "of the input; 0 to 4 are sensible (default: none is)",
    )
    add("--picture-seconds", type=float, default=60, help="time to decode a picture, 0 for any (default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in ("batch_size", "samples_per_part", "image_size", "max_pixels", "job_count"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    for name in ("workers", "min_side", "max_aspect", "min_text", "max_text", "picture_seconds", "job_index"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be 0 or more, and finite, got {value}")
    if 0 < options.max_aspect < 1:
        parser.error(
            f"--max-aspect is of the longer by the shorter side: 1 or more, or 0 for any, got {options.max_aspect}"
        )
    if 0 < options.max_text < options.min_text:
        parser.error(f"--max-text {options.max_text} is below --min-text {options.min_text}: no text has both")
    if not -1 <= options.duplicate_bits <= 64:
        parser.error(f"--duplicate-bits must be between 0 and 64, or -1, got {options.duplicate_bits}")
    if not 0 <= options.max_rejects <= 1:
        parser.error(f"--max-rejects is a share between 0 and 1, got {options.max_rejects}")
    return options
