#!/usr/bin/env python
"""Show code shards as images and text: samples, and training rows with their loss mask.

The output is a page: tokens per source, codebook usage, samples, and with --config rows exactly as training reads them,
document by document. Tokens with a loss are green, the others grey.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from pretrain.system.disk import disk_error
from pretrain.system.errors import UserError, run_command
from tools.inspection.shards import (
    rows_page,
    samples_page,
)

CODEBOOK_DOCUMENTS = 1000
EPILOG = """\
examples:
  python tools/inspect_shards.py --shards work/data/shards/train --vq openmoji-64 --output work/inspected
  python tools/inspect_shards.py --shards work/data/shards/train --vq openmoji-64 --samples 0 17 --verify --output out
  python tools/inspect_shards.py --config pretrain/configs/demo.yaml --rows 0 1 1000 --output work/inspected
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EPILOG
    )
    add = parser.add_argument
    add("--shards", help="dataset made by shard_images.py: its folder, or its URL")
    add("--cache", type=Path, help="folder for what is fetched from a URL (with --config: the configuration's)")
    add("--vq", help="image tokenizer that made it: a shipped name or a folder (with --config: the configuration's)")
    add("--samples", type=int, nargs="*", help="numbers of documents (default: 12, spread over the dataset)")
    add("--config", type=Path, help="configuration of a training run, whose rows are shown")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the configuration, as for train.py")
    add("--rows", type=int, nargs="+", help="numbers of rows (default: 0)")
    add(
        "--codebook-documents",
        type=int,
        help=f"documents a source for codebook use (default: {CODEBOOK_DOCUMENTS})",
    )
    add("--verify", action="store_true", help="check the hash of every shard first")
    add("--output", type=Path, required=True, help="folder for index.html")
    arguments = parser.parse_args()
    if bool(arguments.shards) == bool(arguments.config):
        parser.error("give --shards for samples, or --config for rows")
    if arguments.shards and not arguments.vq:
        parser.error("--shards needs --vq, the image tokenizer that made them")
    other = "--config" if arguments.shards else "--shards"
    for name in ("rows", "set") if arguments.shards else ("samples", "codebook_documents", "verify", "cache"):
        if getattr(arguments, name) not in (None, [], False):
            parser.error(f"--{name.replace('_', '-')} is of {other}: leave it out, or give {other}")
    arguments.rows = arguments.rows or [0]
    if arguments.codebook_documents is None:
        arguments.codebook_documents = CODEBOOK_DOCUMENTS
    if arguments.codebook_documents < 1:
        parser.error(f"--codebook-documents must be at least 1, got {arguments.codebook_documents}")
    return arguments


def main() -> int:
    """Run the command."""
    arguments = parse_arguments()

    from tools.inspection.data_page import write_page

    if arguments.shards:
        title, parts = f"Code shards {arguments.shards}", samples_page(arguments)
    else:
        title, parts = f"Rows of {arguments.config}", rows_page(arguments)
    try:
        write_page(arguments.output / "index.html", title, parts)
    except OSError as error:
        if disk_error(error):
            raise  # run_command names the remedy
        raise UserError(
            f"{error.filename or arguments.output}: cannot be written: {error.strerror}: choose another --output"
        ) from error
    print(f"wrote {arguments.output / 'index.html'}")
    return 0


if __name__ == "__main__":
    run_command(main)
