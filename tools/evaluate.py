"""Evaluate a Uni-X model: pictures for benchmarks, text benchmarks, held-out loss, reconstruction, retrieval."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from dataclasses import dataclass

from model.errors import UserError, run_command
from tools.generate import at_least, scale, share

EPILOG = """\
examples:
  python tools/evaluate.py --model work/demo/model --task heldout --data work/data/shards/heldout --output work/scores
  python tools/evaluate.py --model work/demo/model --task geneval --prompts-file metadata.jsonl --output work/geneval
  python tools/evaluate.py --task geneval --prompts-file metadata.jsonl --output work/geneval --check
  python tools/evaluate.py --task geneval --prompts-file metadata.jsonl --output work/geneval --scored results.jsonl

tasks:
  geneval, dpg, imgedit  pictures in OUTPUT/images, as the official scorer reads them; --check looks whether all are
                         there, --scored averages what the scorer answered
  heldout                loss of text and of picture codes on held-out code shards, of an export or a checkpoint
  retrieval              which of --pairs pictures belongs to a text, and which text to a picture
  reconstruction         PSNR and SSIM of what an image tokenizer makes of pictures
  text                   lm-eval-harness, in the environment that make setup-eval makes

Each result is OUTPUT/TASK.json: scores, and what they were made of (prompts and their digest, seeds, dtype, guidance,
wording, model, versions). A set that is not whole has no scores. docs/evaluation.md says more. Exit codes: 0 done, 1
failed, 2 wrong usage or input, or a set that is not whole.
"""
PICTURES = ("geneval", "dpg", "imgedit")
MODEL_TASKS = ("heldout", "retrieval", "reconstruction", "text")


@dataclass(frozen=True)
class Flag:
    """What a flag is when it is not given, for the tasks that read it."""

    default: object
    tasks: tuple[str, ...]


LOSSES = ("heldout", "retrieval")
FLAGS = {
    "prompts_file": Flag(None, PICTURES),
    "rewritten": Flag(None, PICTURES),
    "per_kind": Flag(0, PICTURES),
    "pictures": Flag(None, ("imgedit",)),
    "guidance": Flag(4.0, PICTURES),
    "image_guidance": Flag(1.5, ("imgedit",)),
    "shape": Flag("", PICTURES),
    "temperature": Flag(0.99, PICTURES),
    "top_k": Flag(4096, PICTURES),
    "top_p": Flag(0.96, PICTURES),
    "seed": Flag(0, PICTURES),
    "batch_size": Flag(16, (*PICTURES, "text")),
    "check": Flag(False, PICTURES),
    "scored": Flag(None, PICTURES),
    "judge": Flag("", PICTURES),
    "checkpoint": Flag(None, LOSSES),
    "data": Flag(None, (*LOSSES, "reconstruction")),
    "config": Flag(None, ("heldout",)),
    "rows": Flag(None, ("heldout",)),
    "row_length": Flag(0, LOSSES),
    "pairs": Flag(48, ("retrieval",)),
    "vq": Flag("", ("reconstruction",)),
    "limit": Flag(0, ("reconstruction",)),
    "tasks": Flag("", ("text",)),
    "shots": Flag(None, ("text",)),
    "include_path": Flag(None, ("text",)),
    "lm_eval": Flag(None, ("text",)),
    "dtype": Flag("", (*PICTURES, *LOSSES, "text")),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, **options) -> None:
        parser.add_argument(name, default=None, **options)

    parser.add_argument("--task", required=True, choices=(*PICTURES, *MODEL_TASKS), help="what to measure")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder that tools/convert_to_hf.py wrote")
    add("--checkpoint", type=Path, metavar="DIR", help="in place of --model: a run folder (its newest) or a checkpoint")
    add("--prompts-file", type=Path, metavar="FILE", help="official prompt file of the benchmark, the user's own copy")
    add(
        "--rewritten",
        type=Path,
        metavar="FILE",
        help="other prompts for the same items: .txt, one a line, or .json {key: prompt}; results say so",
    )
    add("--pictures", type=Path, metavar="DIR", help="source pictures of ImgEdit")
    add("--per-kind", type=at_least(1, int), metavar="N", help="only the first N items of each kind, to try it out")
    add("--check", action="store_true", help="check OUTPUT/images, draw nothing")
    add("--scored", type=Path, metavar="FILE", help="average this file of the official scorer, draw nothing")
    add("--judge", metavar="NAME", help="which model judged --scored; ImgEdit needs it")
    add("--guidance", type=scale, metavar="SCALE", help="as tools/generate.py takes it (default 4)")
    add("--image-guidance", type=scale, metavar="SCALE", help="the same of the source picture of an edit (default 1.5)")
    add(
        "--shape",
        metavar="SHAPE",
        help="of the pictures, as 4:3 (default: squares; for edits the shape that is nearest to the source's)",
    )
    add("--temperature", type=at_least(0, float), help="of the codes (default 0.99)")
    add("--top-k", type=at_least(0, int), help="likeliest codes kept, 0 for all (default 4096)")
    add("--top-p", type=share, help="probability mass kept (default 0.96)")
    add("--seed", type=int, help="of all chance (default 0)")
    add("--batch-size", type=at_least(1, int), help="pictures, or texts, at a time (default 16)")
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="code shards (heldout, retrieval), or pictures in any form that shard_images.py takes (reconstruction)",
    )
    add("--config", type=Path, metavar="FILE", help="configuration of the run whose held-out rows are meant")
    add("--rows", type=at_least(0, int), metavar="N", help="held-out rows, 0 for all (default: the run's, else all)")
    add("--row-length", type=at_least(16, int), metavar="N", help="tokens of a row (default: the run's, else 1024)")
    add("--pairs", type=at_least(2, int), metavar="N", help="texts and pictures that are paired (default 48)")
    add("--vq", metavar="NAME_OR_DIR", help="image tokenizer (default: that of --model)")
    add("--limit", type=at_least(0, int), metavar="N", help="the first N pictures only (default 0: all)")
    add("--tasks", metavar="NAMES", help="lm-eval's tasks, as arc_easy,arc_challenge,boolq,winogrande,mmlu")
    add("--shots", type=at_least(0, int), metavar="N", help="examples in the prompt (default: the task's)")
    add("--include-path", type=Path, metavar="DIR", help="folder with lm-eval tasks of your own")
    add("--lm-eval", type=Path, metavar="FILE", help="lm-eval's command (default .venv-eval/bin/lm_eval)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (default float32 on a CPU, bfloat16 on a GPU)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: the GPU if there is one"
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Fill in defaults. Raises UserError for a flag that the task does not read, or for one that it needs."""
    for name, flag in FLAGS.items():
        given = getattr(args, name)
        if args.task not in flag.tasks and given not in (None, False):
            raise UserError(f"--{name.replace('_', '-')} means nothing to --task {args.task}: leave it out")
        if given is None:
            setattr(args, name, flag.default)

    def need(name: str, why: str) -> None:
        if not getattr(args, name):
            raise UserError(f"--task {args.task} needs --{name.replace('_', '-')}: {why}")

    if args.task in PICTURES:
        need("prompts_file", "the benchmark's prompt file")
        if args.task == "imgedit" and not args.scored:
            need("pictures", "the folder of the source pictures")
        if args.task == "imgedit" and args.scored:
            need("judge", "the name of the model that judged, since scores of different judges differ")
        if not args.scored and not args.check:
            need("model", "the folder of the model that draws")
    elif args.task in LOSSES:
        if bool(args.model) == bool(args.checkpoint):
            raise UserError(f"--task {args.task} needs --model or --checkpoint, one of them")
        if args.task == "retrieval":
            need("data", "code shards with pictures and texts")
    elif args.task == "reconstruction":
        need("data", "the pictures")
        if not args.vq:
            need("model", "or --vq, an image tokenizer")
    else:
        need("model", "the folder of the model")
        need("tasks", "names of lm-eval's tasks")


def check_paths(args: argparse.Namespace) -> None:
    """Raise UserError for a path that is not there, before the seconds that it takes to import torch."""
    from pretrain.inputs import holds_checkpoint
    from tokenization.vq import find_folder
    from tools.export_folder import check_export

    if args.model and not args.scored:
        check_export(args.model)
    if args.checkpoint and not holds_checkpoint(args.checkpoint):
        raise UserError(f"{args.checkpoint}: holds no checkpoint: give a run folder or one of its checkpoints/step_*")
    if args.vq:
        find_folder(args.vq)


def main(arguments: list[str] | None = None) -> int:
    """Do the task, write its result, print the scores."""
    args = build_parser().parse_args(arguments)
    check_arguments(args)
    check_paths(args)
    from tools.evaluation import pictures
    from tools.evaluation.record import write_record

    if args.task in PICTURES and args.check:
        pictures.check_only(args)
        return 0
    if args.task in PICTURES and not args.scored:
        record, found = pictures.draw(args)
        pictures.finish(args, found, write_record(args.output, record))
        return 0
    record = pictures.score(args) if args.task in PICTURES else measure(args)
    path = write_record(args.output, record, f"{args.task}-scores" if args.task in PICTURES else "")
    for name, value in record["scores"].items():
        print(f"{name} {value:.6g}")
    print(f"{record['items']['done']} of {record['items']['expected']} items; {path}")
    return 0


def measure(args: argparse.Namespace) -> dict:
    """The result of a task that needs nothing but the model and data."""
    if args.task in LOSSES:
        from tools.evaluation import losses

        return getattr(losses, args.task)(args)
    if args.task == "reconstruction":
        from tools.evaluation.reconstruction import reconstruction

        return reconstruction(args)
    from tools.evaluation.text import text

    return text(args)


if __name__ == "__main__":
    run_command(main)
