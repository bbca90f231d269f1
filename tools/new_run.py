#!/usr/bin/env python
"""Write the configuration of a training run from finished shards and, if there is one, the base model.

Model size, sequence length and steps follow from the amount of data; every key of the file has a comment, and the last lines
give the next commands. The numbers are a starting point for small corpora: change what you know better.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import tempfile

from pretrain.system.disk import disk_error
from pretrain.system.errors import UserError, run_command
from pretrain.system.words import counted
from tools.runs.new_run import (
    SIZES,
    check_alike,
    commented,
    prompts_of,
    settings,
    warnings,
    what_there_is,
)

MOST_EPOCHS = 1_000_000


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/new_run.py --shards work/photos/shards/train --heldout work/photos/shards/heldout \\\n"
        "    --tokenizer work/photos/tokenizer --vq work/photos/vq --folder work/photos/run --output work/photos/run.yaml",
    )
    add = parser.add_argument
    add("--shards", type=Path, nargs="+", required=True, metavar="DIR", help="datasets of shard_images.py to train on")
    add("--heldout", type=Path, metavar="DIR", help="dataset that is only measured on")
    add(
        "--tokenizer",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with the tokenizer.json that made the shards",
    )
    add("--vq", required=True, metavar="NAME_OR_DIR", help="image tokenizer that made the shards")
    add(
        "--init-from",
        type=Path,
        metavar="DIR",
        help="base model, as tools/convert_from_hf.py writes one (default: from nothing)",
    )
    add(
        "--size",
        choices=(*SIZES, "auto"),
        default="auto",
        help="of a model from nothing (default: by the tokens there are)",
    )
    add(
        "--epochs",
        type=float,
        default=0,
        help="times that each document is used (default: 20 for up to 100,000 pictures, else 2)",
    )
    add("--folder", type=Path, required=True, metavar="DIR", help="run folder, for run.folder")
    add("--output", type=Path, required=True, metavar="FILE", help="YAML file to write")
    add("--overwrite", action="store_true", help="write over OUTPUT")
    arguments = parser.parse_args()
    if not 0 <= arguments.epochs < MOST_EPOCHS:
        parser.error(f"--epochs must be below {MOST_EPOCHS:,}, and not negative, got {arguments.epochs:g}")
    places = [path.resolve() for path in arguments.shards]
    if twice := next((path for path, place in zip(arguments.shards, places) if places.count(place) > 1), None):
        parser.error(
            f"--shards {twice} is given twice: give it once (weight in the configuration is how often it is used)"
        )
    if arguments.init_from and arguments.size != "auto":
        parser.error("--size is of a model from nothing: the one in --init-from has its own")
    return arguments


def main() -> int:
    """Write the file, and print a summary."""
    arguments = parse_arguments()
    if arguments.output.exists() and not arguments.overwrite:
        raise UserError(f"{arguments.output} is there already: give another --output, or --overwrite")
    from model.weight_shapes import parameters
    from pretrain.config import load_config
    from pretrain.setup import load_tokenizer, model_config
    from tokenization.files import write_text
    from tokenization.shards import open_dataset
    from tokenization.vq import find_folder

    if arguments.folder.exists() and (not arguments.folder.is_dir() or (arguments.folder / "manifest.json").exists()):
        raise UserError(f"--folder {arguments.folder}: is a file, or holds shards: give a folder for the run")
    find_folder(arguments.vq)
    datasets = [open_dataset(path) for path in arguments.shards]
    heldout = open_dataset(arguments.heldout) if arguments.heldout else None
    manifest = datasets[0].manifest
    check_alike(
        [*arguments.shards, *([arguments.heldout] if heldout else [])], [*datasets, *([heldout] if heldout else [])]
    )
    for line in warnings(arguments.vq, datasets, heldout):
        print(f"warning: {line}", file=sys.stderr)
    tokenizer = load_tokenizer(arguments.tokenizer, manifest)
    found = what_there_is(datasets)
    values = settings(arguments, found, prompts_of(heldout or datasets[0]))
    text = commented(values, found)
    with tempfile.TemporaryDirectory() as folder:  # what training would refuse is refused before it has the name
        trial = Path(folder) / "run.yaml"
        trial.write_text(text, encoding="utf-8")
        config = load_config(str(trial), [])
        model = model_config(config.model, tokenizer, manifest)
    try:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.output, text)
    except OSError as error:
        if disk_error(error):
            raise  # run_command names the remedy
        raise UserError(f"--output {arguments.output}: cannot be written ({error.strerror}): choose another") from None
    data = config.data
    per_step = data.global_batch_size * data.sequence_length
    print(
        f"{arguments.output}: {parameters(model) / 1e6:,.1f} million parameters{f' from {arguments.init_from}' if arguments.init_from else ''}, "
        f"{counted(found['documents'], 'document')} of {found['tokens']:,} tokens with {counted(found['pictures'], 'picture')}; "
        f"{counted(config.run.steps, 'step')} of "
        f"{per_step:,} tokens, which use each document {config.run.steps * per_step / max(1, found['tokens']):.3g} times\n"
        f"python pretrain/train.py --config {arguments.output}"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
