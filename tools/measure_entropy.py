#!/usr/bin/env python
"""Measure the conditional n-gram entropy of text and of image codes, and how far each estimate can be trusted.

H_n is the entropy of a token given the n - 1 before it. Windows stay inside one text or one picture (codes row by row).
The plug-in estimate falls towards zero when most n-grams are seen once, so it stands beside a corrected one (Chao and
Shen, 2003), and both are shown for growing samples. Shards are streamed: memory is bounded, whatever their size.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from collections.abc import Iterator

from pretrain.system.errors import UserError, run_command
from pretrain.system.output_file import check_output_folder, check_own_output
from tools.generation.arguments import at_least


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/measure_entropy.py --text captions=work/data/shards/train "
        "--image pictures=work/data/shards/train --output work/entropy",
    )
    for modality, what in (("text", "all texts of its documents"), ("image", "the codes of its pictures")):
        parser.add_argument(
            f"--{modality}",
            nargs="+",
            default=[],
            metavar="NAME=FOLDER",
            help=f"folders of code shards to take: {what}",
        )
    parser.add_argument("--output", type=Path, required=True, help="folder for entropy.csv, .png and summary.md")
    parser.add_argument("--orders", type=at_least(1, int, 64), default=6, help="n = 1 .. this (default: 6)")
    parser.add_argument(
        "--points", type=at_least(1, int, 30), default=5, help="sample sizes, each half of the next (default: 5)"
    )
    parser.add_argument(
        "--memory", type=at_least(0.01, float), default=2.0, metavar="GIB", help="for counting (default: 2)"
    )
    arguments = parser.parse_args()
    if not arguments.text and not arguments.image:
        parser.error("give --text or --image folders, or both")
    check_output_folder(arguments.output, "--output")
    check_own_output(arguments.output, "--output", "summary.md", "entropy.csv")
    return arguments


def named(value: str) -> tuple[str, Path]:
    """Parse NAME=FOLDER. Raises UserError."""
    name, separator, folder = value.partition("=")
    if not separator or not name or not folder:
        raise UserError(f"{value!r}: write NAME=FOLDER, as in german=work/shards/de")
    return name, Path(folder)


def sequences(dataset, modality: str) -> Iterator:
    """Token ids of each text, or codes of each image, of an open dataset of code shards."""
    import numpy

    for document in dataset:
        if modality == "text":
            ids, lengths = document["text_ids"], document["text_lengths"]
        else:
            grids = document["grids"].astype(numpy.int64)
            ids, lengths = document["codes"], grids[0::2] * grids[1::2]
        yield from numpy.split(ids, numpy.cumsum(lengths)[:-1]) if len(lengths) else ()


def main() -> int:
    """Measure every stream, write."""
    arguments = parse_arguments()
    asked = [(modality, *named(value)) for modality in ("text", "image") for value in getattr(arguments, modality)]
    names = [name for _, name, _ in asked]
    if len(set(names)) < len(names):
        raise UserError(f"two folders have one name among {', '.join(names)}: give each its own")
    from tokenization.shards import open_dataset
    from tools.analysis.entropy.measurement import measure, write

    opened = [(modality, name, open_dataset(folder)) for modality, name, folder in asked]
    for modality, _, dataset in opened:
        if not dataset.manifest["counts"]["text_tokens" if modality == "text" else "image_tokens"]:
            raise UserError(f"{dataset.folder}: has no {modality} tokens: leave it out of --{modality}")
    found = []
    for modality, name, dataset in opened:
        found += measure(
            name,
            modality,
            functools.partial(sequences, dataset, modality),
            arguments.orders,
            arguments.points,
            arguments.memory * 2**30,
        )
    write(arguments.output, found)
    print((arguments.output / "summary.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    run_command(main)
