"""Table of the evaluations of tools/evaluate.py: a new one is a function in its own module and an entry here.

The function takes the parsed command line and returns the result that `record.make_record` makes. It is imported when it is
used, since most need torch. Nothing here does.
"""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from pretrain.system.errors import UserError

EXPORT, EXPORT_OR_CHECKPOINT = "an export", "an export or a checkpoint"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation."""

    summary: str  # what it measures, a clause for --help
    run: str  # "module:function"
    flags: Mapping[str, Any] = field(default_factory=dict)  # that it reads -> their values when not given
    needs: Mapping[str, str] = field(default_factory=dict)  # flags that it needs -> what they are
    of: str = EXPORT  # input; checkpoints of a run are measured directly where it takes them, else exported first
    check: Callable[[Namespace, Set[str]], None] | None = None  # (values, flags given): raises UserError for others
    draws: bool = (
        False  # pictures for an external scorer: they are generated and checked first, and `run` is for --scored
    )

    @property
    def of_checkpoints(self) -> bool:
        """Whether it measures a checkpoint without an export."""
        return self.of == EXPORT_OR_CHECKPOINT

    def function(self) -> Callable[[Namespace], dict[str, Any]]:
        """The function that `run` names."""
        module, name = self.run.split(":")
        return getattr(importlib.import_module(module), name)


def need(args: Namespace, name: str, why: str) -> None:
    """Raises UserError for a missing flag."""
    if not getattr(args, name):
        raise UserError(f"--task {args.task} needs --{name.replace('_', '-')}: {why}")


ITEMS = {"prompts_file", "rewritten", "per_kind"}  # flags that choose items
CHECKS = {*ITEMS, "check", "pictures"}  # flags that --check reads
SCORES = {*ITEMS, "scored", "judge"}  # flags that --scored reads


def check_drawing(args: Namespace, given: Set[str]) -> None:
    """Check the flags of an image benchmark: they depend on whether images are generated, checked or scored."""
    if args.check and args.scored:
        raise UserError("--check and --scored: give one of them")
    need(args, "prompts_file", "the benchmark's prompt file")
    if args.check:
        without_effect(given - CHECKS, "of --check, which draws nothing")
    elif args.scored:
        without_effect(given - SCORES, "of --scored, which draws nothing")
    else:
        without_effect(given & {"judge"}, "without --scored")
    if args.task == "imgedit" and not args.scored:
        need(args, "pictures", "the folder of the source pictures")
    if args.task == "imgedit" and args.scored:
        need(args, "judge", "the name of the model that judged, since scores of different judges differ")
    if not args.scored and not args.check:
        need(args, "model", "the folder of the model that draws")


def check_model(args: Namespace, given: Set[str]) -> None:
    """Check what measures an export or a checkpoint: one of them, and a checkpoint as training has it."""
    if bool(args.model) == bool(args.checkpoint):
        raise UserError(f"--task {args.task} needs --model or --checkpoint, one of them")
    if args.checkpoint:
        without_effect(given & {"dtype", "device"}, "of --checkpoint, which is measured as training has it")


def check_tokenizer(args: Namespace, given: Set[str]) -> None:
    """Check that an image tokenizer is named, or that of a model."""
    if bool(args.vq) == bool(args.model):
        raise UserError(f"--task {args.task} needs --vq or --model, one of them: the image tokenizer")


def without_effect(flags: Set[str], where: str) -> None:
    """Raises UserError for flags that were given and would change nothing."""
    for name in sorted(flags):
        raise UserError(f"--{name.replace('_', '-')} changes nothing {where}: leave it out")


PICTURES = {
    "prompts_file": None,
    "rewritten": None,
    "per_kind": 0,
    "guidance": 4.0,
    "shape": "",
    "temperature": 0.99,
    "top_k": 4096,
    "top_p": 0.96,
    "seed": 0,
    "batch_size": 16,
    "check": False,
    "scored": None,
    "judge": "",
    "dtype": "",
}
DRAWING = Evaluation(
    summary="pictures in OUTPUT/images, as the official scorer reads them; --check looks whether all are there, --scored "
    "averages what the scorer answered",
    run="tools.evaluation.pictures:score",
    flags=PICTURES,
    check=check_drawing,
    draws=True,
)
LOSSES = {"checkpoint": None, "data": None, "sequence_length": 0, "dtype": ""}

EVALUATIONS = {
    "geneval": DRAWING,
    "dpg": DRAWING,
    "imgedit": Evaluation(
        DRAWING.summary,
        DRAWING.run,
        {**PICTURES, "pictures": None, "image_guidance": 1.5},
        check=check_drawing,
        draws=True,
    ),
    "heldout": Evaluation(
        summary="loss of text and of picture codes on held-out code shards, of an export or a checkpoint",
        run="tools.evaluation.losses:heldout",
        flags={**LOSSES, "config": None, "rows": None},
        of=EXPORT_OR_CHECKPOINT,
        check=check_model,
    ),
    "retrieval": Evaluation(
        summary="which of --pairs pictures belongs to a text, and which text to a picture",
        run="tools.evaluation.losses:retrieval",
        flags={**LOSSES, "pairs": 48},
        needs={"data": "code shards with pictures and texts"},
        of=EXPORT_OR_CHECKPOINT,
        check=check_model,
    ),
    "reconstruction": Evaluation(
        summary="PSNR and SSIM of what an image tokenizer makes of pictures",
        run="tools.evaluation.reconstruction:reconstruction",
        flags={"data": None, "vq": "", "limit": 0},
        needs={"data": "the pictures"},
        check=check_tokenizer,
    ),
    "text": Evaluation(
        summary="lm-eval-harness, in the environment that make setup-eval makes",
        run="tools.evaluation.text:text",
        flags={"tasks": "", "shots": None, "include_path": None, "lm_eval": None, "batch_size": 16, "dtype": ""},
        needs={"model": "the folder of the model", "tasks": "names of lm-eval's tasks"},
    ),
}
"""By the name that --task takes."""
