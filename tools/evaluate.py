"""Evaluate a Uni-X model: images for benchmarks, text benchmarks, held-out loss, reconstruction, retrieval."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from pretrain.system.errors import UserError, run_command
from pretrain.system.output_file import check_output_folder
from tools.evaluation.arguments import build_parser, check_arguments
from tools.evaluation.tasks import EVALUATIONS

EPILOG = """\
examples:
  python tools/evaluate.py --model work/demo/model --task heldout --data work/data/shards/heldout --output work/scores
  python tools/evaluate.py --model work/demo/model --task geneval --prompts-file metadata.jsonl --output work/geneval
  python tools/evaluate.py --task geneval --prompts-file metadata.jsonl --output work/geneval --check
  python tools/evaluate.py --task geneval --prompts-file metadata.jsonl --output work/geneval --scored results.jsonl

tasks:
{tasks}

Each result is OUTPUT/TASK.json: scores, and what they were made of (prompts and their digest, seeds, dtype, guidance,
wording, model, versions). A set that is not whole has no scores. docs/evaluation.md says more. Exit codes: 0 done, 1
failed, 2 wrong usage or input, or a set that is not whole.
"""


def check_paths(args: argparse.Namespace) -> None:
    """Raises UserError for missing paths, before torch is imported."""
    from pretrain.inputs import holds_checkpoint
    from tokenization.vq import find_folder
    from tools.export.folder import check_export

    if args.model and not args.scored:
        check_export(args.model)
    if args.checkpoint and not holds_checkpoint(args.checkpoint):
        raise UserError(f"{args.checkpoint}: holds no checkpoint: give a run folder or one of its checkpoints/step_*")
    if args.vq:
        find_folder(args.vq)
    check_output_folder(args.output, "--output")


def main(arguments: list[str] | None = None) -> int:
    """Run the task, write its result, print the scores."""
    args = build_parser(__doc__, EPILOG).parse_args(arguments)
    check_arguments(args)
    check_paths(args)
    from tools.evaluation.record import read_record, replaced, write_record

    evaluation = EVALUATIONS[args.task]
    name = f"{args.task}-scores" if evaluation.draws and args.scored else args.task
    written = args.output / f"{name}.json"
    if written.exists() and not args.check:
        read_record(written)  # before the work: a file that is no result is not written over
    if evaluation.draws and not args.scored:
        from tools.evaluation import pictures

        if args.check:
            pictures.check_only(args)
        else:
            record, found = pictures.draw(args)
            pictures.finish(args, found, write_record(args.output, record))
        return 0
    record = evaluation.function()(args)
    if line := replaced(written, record):
        print(line, file=sys.stderr)
    path = write_record(args.output, record, name)
    for name, value in record["scores"].items():
        print(f"{name} {value:.6g}")
    print(f"{record['items']['done']} of {record['items']['expected']} items; {path}")
    return 0


if __name__ == "__main__":
    run_command(main)
