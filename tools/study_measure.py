#!/usr/bin/env python
"""Measure a checkpoint for the study: held-out losses by kind of target, retrieval, size, conflict.

Losses are means in nats a token: plain text of each language, names of pictures, picture codes. For pairs, the right
one of N texts (or pictures) must be the likeliest for a picture (or text), what it has with all of them taken out;
chance is 1 in N.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json

from pretrain.system.errors import UserError, run_command
from tokenization.files import write_text
from tools.study.measure import (
    conflict_of,
    heldout_losses,
    sizes_of,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/study_measure.py --checkpoint work/demo/run --pictures work/data/shards "
        "--texts work/data/texts/shards --output work/demo/measures",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder (its newest good one) or checkpoint")
    parser.add_argument("--pictures", type=Path, required=True, help="folder with code shards train and heldout")
    parser.add_argument("--texts", type=Path, required=True, help="folder with LANGUAGE/train and LANGUAGE/heldout")
    parser.add_argument("--output", type=Path, required=True, help="folder for measures.json and conflict/")
    parser.add_argument("--pairs", type=int, default=48, help="texts and pictures that are paired (default: 48)")
    parser.add_argument("--rows", type=int, default=32, help="rows of each held-out loss, at most (default: 32)")
    parser.add_argument(
        "--sequence-length", "--row-length", type=int, default=1024, help="tokens of a row (default: 1024)"
    )
    parser.add_argument("--blocks", type=int, default=16, help="blocks of the conflict (default: 16)")
    parser.add_argument("--targets", type=int, default=256, help="targets of a block (default: 256)")
    return parser.parse_args()


def main() -> int:
    """Measure everything, write measures.json last."""
    arguments = parse_arguments()
    languages = sorted(path for path in arguments.texts.glob("*") if (path / "heldout").is_dir())
    if not languages:
        raise UserError(
            f"{arguments.texts}: has no LANGUAGE/heldout with code shards: see tools/run_study.py, which makes them"
        )
    from pretrain import runtime

    runtime.install()
    from pretrain.tasks import tokenize_prompts
    from tokenization.shards import open_dataset
    from tools.runs.checkpoint_model import check_shards, open_checkpoint
    from tools.study.scores import both_directions, target_losses

    opened = open_checkpoint(arguments.checkpoint)
    sides = {side: arguments.pictures / side for side in ("train", "heldout")}
    check_shards(opened, list(sides.values()))
    tokenized = tokenize_prompts(opened.encode, opened.config.vocabulary, opened.templates, opened.markup)
    losses = target_losses(opened)
    found = {
        "checkpoint": str(opened.folder),
        "losses": heldout_losses(opened, arguments, languages),
        "pairs": {
            side: both_directions(losses, tokenized, open_dataset(folder), arguments.pairs, arguments.sequence_length)
            for side, folder in sides.items()
        },
        "parameters": sizes_of(opened),
        "conflict": conflict_of(opened, arguments, languages),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_text(arguments.output / "measures.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_command(main)
