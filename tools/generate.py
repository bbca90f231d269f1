"""Generate images, captions, edits, texts and interleaved documents with an exported Uni-X model."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from pretrain.system.errors import UserError, run_command
from pretrain.system.threads import settle_threads
from tools.generation.arguments import at_least, choose_device, scale, share
from tools.generation.job import run_job
from tools.generation.prompts import PICTURE_TASKS, TASKS, Sampling
from tools.generation.record import Record, sole_user
from tools.generation.requests import not_of_model, read_requests, where, without_effect

EPILOG = """\
examples:
  python tools/generate.py --model work/demo/model --prompt "red apple" --output pictures
  python tools/generate.py --model work/demo/model --prompts-file prompts.txt --num-images 1 --output pictures
  python tools/generate.py --model work/demo/model --image apple.png --output captions
  python tools/generate.py --model work/demo/model --image apple.png --prompt "What colour is it?" --output answers
  python tools/generate.py --model work/demo/model --task edit --image apple.png --prompt "make it green" --output edits

OUTPUT gets generations.jsonl (one line a result: prompt, seed, file, settings), and for pictures PPPP-KK.png (picture K
of prompt P) and contact_sheet.png. Texts are printed too, and are the likeliest unless --text-temperature is given.

A job that was ended goes on when the same command is given again: results that are there are not made twice. Sample K
of prompt P depends on --seed, P, K, the prompt and the sampling settings, not on --batch-size or on --num-images,
beyond the rounding of another batch shape. Exit codes: 0 done, 1 failed, 2 wrong usage or input.
"""


def build_parser() -> argparse.ArgumentParser:
    """Command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="DIR", help="folder that tools/convert_to_hf.py wrote")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    add("--task", choices=TASKS, help="what to make (default: caption if there are pictures, else draw)")
    add("--prompt", action="append", default=[], metavar="TEXT", help="a caption, question, instruction or beginning")
    add(
        "--prompts-file",
        type=Path,
        metavar="FILE",
        help='.txt, a prompt a line, or .jsonl, {"prompt": TEXT, "images": [FILE, ...], "shape": 4:3} a line, FILE relative to it',
    )
    add(
        "--image",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a picture to caption, edit or continue from; repeatable",
    )
    add("--num-images", type=at_least(1, int), default=4, metavar="N", help="pictures a prompt (default 4)")
    add(
        "--shape",
        default="",
        metavar="SHAPE",
        help="of pictures that are drawn: width to height as 4:3, or rows*columns of codes (default: the model chooses)",
    )
    add("--size", default="", metavar="WxH", help="the same in pixels: the nearest shape is drawn, and is not resized")
    add(
        "--guidance",
        type=scale,
        default=4.0,
        metavar="SCALE",
        help="classifier-free guidance of the text, 1 for none; FIRST:LAST changes it over a picture (default 4)",
    )
    add(
        "--image-guidance",
        type=scale,
        default=1.5,
        metavar="SCALE",
        help="the same of the source picture of an edit (default 1.5)",
    )
    add("--temperature", type=at_least(0, float), default=0.99, help="of the codes, 0 for the likeliest (default 0.99)")
    add("--top-k", type=at_least(0, int), default=4096, help="likeliest codes kept, 0 for all (default 4096)")
    add("--top-p", type=share, default=0.96, help="probability mass kept (default 0.96)")
    add("--text-temperature", type=at_least(0, float), default=0.0, help="of text, 0 for the likeliest (default 0)")
    add("--max-new-tokens", type=at_least(1, int), default=64, help="longest text (default 64)")
    add("--max-images", type=at_least(0, int), default=4, help="most pictures of an interleaved document (default 4)")
    add("--chat", action="store_true", help="ask in a user's turn, as models that learned conversations expect")
    add("--seed", type=int, default=0, help="of all chance (default 0)")
    add("--batch-size", type=at_least(1, int), default=16, help="results at a time (default 16)")
    add(
        "--preview",
        type=at_least(0, int),
        default=0,
        metavar="ROWS",
        help="write PPPP-KK.partial.png after each ROWS rows of codes (default 0: never)",
    )
    add("--overwrite", action="store_true", help="remove the results in OUTPUT first")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: the GPU if there is one")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Read the requests, generate, and say where the results are."""
    args = build_parser().parse_args(arguments)
    task, requests = read_requests(args)
    for line in without_effect(args, task, build_parser()):
        print(f"warning: {line}", file=sys.stderr)
    from tools.export.folder import check_export, open_export

    check_export(args.model)  # before the seconds that it takes to import torch
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be made ({error.strerror}): give another folder") from None
    sampling = Sampling(
        args.guidance,
        args.temperature,
        args.top_k,
        args.top_p,
        args.seed,
        args.image_guidance,
        args.text_temperature,
        args.max_new_tokens,
        args.max_images,
        args.chat,
    )
    with sole_user(args.output):
        record = Record(args.output)
        if args.overwrite:
            record.forget()
        threads = settle_threads()
        device = choose_device(args.device)
        threads.use()
        export = open_export(args.model, device)
        rows = max(height for height, _ in export.templates.grids)
        for line in not_of_model(args, task, getattr(export.model.config, "skills", None), rows):
            print(f"warning: {line}", file=sys.stderr)
        samples = args.num_images if task in PICTURE_TASKS else 1
        run_job(export, task, requests, samples, sampling, args.batch_size, args.preview, record)
        print(where(record, task), file=sys.stderr)
        if all("error" in line for line in record.lines.values()):
            raise UserError(
                f"{record.path}: nothing was made, every request was put aside: give pictures that can be read"
            )
    return 0


if __name__ == "__main__":
    run_command(main)
