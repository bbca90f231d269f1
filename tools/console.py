"""Console commands of an installation (`uni-x-train`, `uni-x-shard`, ...): each is the `main` of a script.

pyproject.toml names `run` for all of them; the name that was typed says which one is meant. Scripts run from a clone
(`python pretrain/train.py`) do not come through here.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import NoReturn

from pretrain.system.errors import run_command

COMMANDS = {  # name -> module with a main()
    "uni-x-train": "pretrain.train",
    "uni-x-shard": "tokenization.shard_images",
    "uni-x-shift-pictures": "tokenization.shift_pictures",
    "uni-x-train-tokenizer": "tokenization.train_tokenizer",
    "uni-x-train-vq": "tokenization.train_vq",
    "uni-x-convert-from-hf": "tools.convert_from_hf",
    "uni-x-convert-to-hf": "tools.convert_to_hf",
    "uni-x-evaluate": "tools.evaluate",
    "uni-x-evaluate-run": "tools.evaluate_run",
    "uni-x-generate": "tools.generate",
    "uni-x-inspect-data": "tools.inspect_data",
    "uni-x-inspect-shards": "tools.inspect_shards",
    "uni-x-measure-conflict": "tools.measure_conflict",
    "uni-x-measure-entropy": "tools.measure_entropy",
    "uni-x-new-run": "tools.new_run",
    "uni-x-plan-parallel": "tools.plan_parallel",
    "uni-x-serve": "tools.serve",
    "uni-x-suggest-separation": "tools.suggest_separation",
    "uni-x-watch-run": "tools.watch_run",
}


def run() -> NoReturn:
    """Run the command whose name was typed, and exit with its code."""
    name = Path(sys.argv[0]).stem if sys.argv[0].endswith(".exe") else Path(sys.argv[0]).name
    run_command(importlib.import_module(COMMANDS[name]).main)
