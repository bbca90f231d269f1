"""Command line of tools/evaluate.py: flags that evaluations share, and which evaluation reads which."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from pretrain.system.errors import UserError
from tools.evaluation.tasks import EVALUATIONS, need
from tools.generation.arguments import at_least, scale, share

FLAGS: dict[str, dict[str, Any]] = {
    "checkpoint": {
        "type": Path,
        "metavar": "DIR",
        "help": "in place of --model: a run folder (its newest) or a checkpoint",
    },
    "prompts_file": {
        "type": Path,
        "metavar": "FILE",
        "help": "official prompt file of the benchmark, the user's own copy",
    },
    "rewritten": {
        "type": Path,
        "metavar": "FILE",
        "help": "other prompts for the same items: .txt, one a line, or .json {key: prompt}; results say so",
    },
    "pictures": {"type": Path, "metavar": "DIR", "help": "source pictures of ImgEdit"},
    "per_kind": {
        "type": at_least(1, int),
        "metavar": "N",
        "help": "only the first N items of each kind, to try it out",
    },
    "check": {"action": "store_true", "help": "check OUTPUT/images, draw nothing"},
    "scored": {"type": Path, "metavar": "FILE", "help": "average this file of the official scorer, draw nothing"},
    "judge": {"metavar": "NAME", "help": "which model judged --scored; ImgEdit needs it"},
    "guidance": {"type": scale, "metavar": "SCALE", "help": "as tools/generate.py takes it (default 4)"},
    "image_guidance": {
        "type": scale,
        "metavar": "SCALE",
        "help": "the same of the source picture of an edit (default 1.5)",
    },
    "shape": {
        "metavar": "SHAPE",
        "help": "of the pictures, as 4:3 (default: squares; for edits the shape that is nearest to the source's)",
    },
    "temperature": {"type": at_least(0, float), "help": "of the codes (default 0.99)"},
    "top_k": {"type": at_least(0, int), "help": "likeliest codes kept, 0 for all (default 4096)"},
    "top_p": {"type": share, "help": "probability mass kept (default 0.96)"},
    "seed": {"type": int, "help": "of all chance (default 0)"},
    "batch_size": {"type": at_least(1, int), "help": "pictures, or texts, at a time (default 16)"},
    "data": {
        "type": Path,
        "metavar": "PATH",
        "help": "code shards (heldout, retrieval), or pictures in any form that shard_images.py takes (reconstruction)",
    },
    "config": {"type": Path, "metavar": "FILE", "help": "configuration of the run whose held-out rows are meant"},
    "rows": {
        "type": at_least(0, int),
        "metavar": "N",
        "help": "held-out rows, 0 for all (default: the run's, else all)",
    },
    "sequence_length": {
        "type": at_least(16, int),
        "metavar": "N",
        "help": "tokens of a row (default: the run's, else 1024)",
    },
    "pairs": {"type": at_least(2, int), "metavar": "N", "help": "texts and pictures that are paired (default 48)"},
    "vq": {"metavar": "NAME_OR_DIR", "help": "image tokenizer (default: that of --model)"},
    "limit": {"type": at_least(0, int), "metavar": "N", "help": "the first N pictures only (default 0: all)"},
    "tasks": {"metavar": "NAMES", "help": "lm-eval's tasks, as arc_easy,arc_challenge,boolq,winogrande,mmlu"},
    "shots": {"type": at_least(0, int), "metavar": "N", "help": "examples in the prompt (default: the task's)"},
    "include_path": {"type": Path, "metavar": "DIR", "help": "folder with lm-eval tasks of your own"},
    "lm_eval": {"type": Path, "metavar": "FILE", "help": "lm-eval's command (default .venv-eval/bin/lm_eval)"},
    "dtype": {
        "choices": ("float32", "bfloat16"),
        "help": "of the weights (default float32 on a CPU, bfloat16 on a GPU)",
    },
}
"""Flags of single evaluations, by the name of their value; what they are when not given stands with the evaluation."""


def task_list() -> str:
    """List of evaluations for --help, grouped by summary."""
    names: dict[str, list[str]] = {}
    for name, evaluation in EVALUATIONS.items():
        names.setdefault(evaluation.summary, []).append(name)
    width = max(len(", ".join(each)) for each in names.values())
    lines = []
    for summary, each in names.items():
        first = f"  {', '.join(each):{width}}  "
        lines += textwrap.wrap(summary, 118, initial_indent=first, subsequent_indent=" " * len(first))
    return "\n".join(lines)


def build_parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser; {tasks} in `epilog` becomes the list of evaluations."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog.replace("{tasks}", task_list()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--task", required=True, choices=tuple(EVALUATIONS), help="what to measure")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    add("--model", type=Path, metavar="DIR", help="folder that tools/convert_to_hf.py wrote")
    for name, options in FLAGS.items():
        former = ["--row-length"] if name == "sequence_length" else []
        add(f"--{name.replace('_', '-')}", *former, default=None, **options)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: the GPU if there is one")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Fill in defaults. Raises UserError for a flag that the task does not read, or for one that it needs."""
    evaluation = EVALUATIONS[args.task]
    given = {name for name in (*FLAGS, "model") if getattr(args, name) not in (None, False)}
    given |= {"device"} if args.device != "auto" else set()
    for name in FLAGS:
        if name not in evaluation.flags and name in given:
            raise UserError(f"--{name.replace('_', '-')} means nothing to --task {args.task}: leave it out")
        if getattr(args, name) is None:
            setattr(args, name, evaluation.flags.get(name))
    for name, why in evaluation.needs.items():
        need(args, name, why)
    if evaluation.check:
        evaluation.check(args, given)
