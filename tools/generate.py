"""Pictures, captions, edits, texts and documents of both, with an exported Uni-X model."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pretrain.system.errors import UserError, run_command
from pretrain.system.threads import settle_threads
from tools.generation.arguments import at_least, choose_device, scale, share
from tools.generation.batches import PICTURE_TASKS, TASKS, Request, Sampling
from tools.generation.job import run_job
from tools.generation.record import Record, sole_user

PROMPT_SUFFIXES = ("", ".txt", ".jsonl")

if TYPE_CHECKING:
    pass

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
    args = build_parser().parse_args(arguments)
    task, requests = read_requests(args)
    for line in without_effect(args, task):
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
        samples = args.num_images if task in PICTURE_TASKS else 1
        run_job(export, task, requests, samples, sampling, args.batch_size, args.preview, record)
        print(where(record, task), file=sys.stderr)
    return 0


def without_effect(args: argparse.Namespace, task: str) -> Iterator[str]:
    """Options that were given and change nothing of this task, a line each."""
    pictures, texts = (
        ("guidance", "temperature", "num_images", "preview"),
        ("text_temperature", "max_new_tokens", "chat"),
    )
    both = (*pictures[:2], *texts, "max_images")
    used = {"draw": pictures, "edit": (*pictures, "image_guidance"), "interleaved": both}.get(task, texts)
    for name in sorted({*pictures, *both, "image_guidance"} - {*used}):
        if getattr(args, name) != build_parser().get_default(name):
            yield f"--{name.replace('_', '-')} changes nothing of --task {task}"


def where(record: Record, task: str) -> str:
    """A line on what lies where."""
    made = [line for line in record.lines.values() if "error" not in line]
    sheet = record.folder / "contact_sheet.png"
    look = f", all of them on {sheet}" if sheet.is_file() and task in PICTURE_TASKS else ""
    what = {"caption": "caption", "text": "text", "interleaved": "document"}.get(task, "picture")
    return f"{record.folder}: {len(made):,} {what}{'' if len(made) == 1 else 's'}{look}, each with its prompt and settings in {record.path.name}"


def read_requests(args: argparse.Namespace) -> tuple[str, list[Request]]:
    """The task and what is asked for, of the flags and the prompts file. UserError for what does not fit."""
    listed = read_prompts(args.prompts_file) if args.prompts_file else []
    prompts = [check_prompt(text, "--prompt") for text in args.prompt]
    images = tuple(args.image)
    task = args.task or ("caption" if images or any(request.images for request in listed) else "draw")
    shape = asked_shape(args, task, listed)
    if task == "caption":
        wordings = [*prompts, *(request.prompt for request in listed if not request.images)] or [""]
        requests = [Request(prompt, (image,)) for image in images for prompt in wordings]
        requests += [Request(request.prompt, (image,)) for request in listed for image in request.images]
    else:
        requests = [Request(prompt, images, shape) for prompt in prompts]
        requests += [Request(request.prompt, request.images or images, request.shape or shape) for request in listed]
    if not requests:
        raise UserError("nothing to do: give --prompt, --prompts-file or --image")
    for request in requests:
        if task == "edit" and not request.images:
            raise UserError(f"edit {request.prompt[:60]!r} has no source picture: give --image")
        if task == "draw" and request.images:
            raise UserError("--task draw takes no pictures: leave out --image, or give --task edit")
        if task != "caption":
            check_prompt(request.prompt, "prompt")
        for image in request.images:
            if not image.is_file():
                raise UserError(f"{image}: there is no such picture: give the path of a picture file")
    return task, requests


def asked_shape(args: argparse.Namespace, task: str, listed: Sequence[Request]) -> str:
    """The shape that the flags ask for, empty for none. Raises UserError for one that cannot be."""
    if (args.shape or args.size or any(request.shape for request in listed)) and task not in PICTURE_TASKS:
        raise UserError(f'--task {task} draws no picture of a given shape: leave out --shape, --size and "shape"')
    if args.shape and args.size:
        raise UserError("--shape and --size say the same in two ways: give one of them")
    width, _, height = args.size.lower().partition("x")
    if args.size and not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"--size {args.size}: give WIDTHxHEIGHT in pixels, as 768x512")
    return f"{width}:{height}" if args.size else args.shape


def read_prompts(path: Path) -> list[Request]:
    """Requests of a text file (a prompt a line) or a JSON-lines file; empty lines are passed over."""
    if path.suffix.lower() not in PROMPT_SUFFIXES:
        raise UserError(
            f"--prompts-file {path}: {path.suffix} files are not read (each line would become a prompt, a header too): give a .txt "
            'file with a prompt a line, or a .jsonl file with lines like {"prompt": TEXT}'
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a .txt or .jsonl file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    requests: list[Request] = []
    unread: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where, images, shape = f"{path} line {number}", [], ""
        if path.suffix.lower() == ".jsonl":
            try:
                values = json.loads(line)
                images = values.get("images", [])
                shape = values.get("shape", "")
                line = values.get("prompt", "") if images else values["prompt"]
                unread |= {key: None for key in values if key not in ("prompt", "images", "shape")}
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f'{where}: not of the form {{"prompt": TEXT}}') from None
            if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
                raise UserError(f"{where}: images is {images!r}: give a list of file names") from None
        if not isinstance(shape, str):
            raise UserError(f'{where}: shape is {shape!r}: give a ratio of width to height as "4:3"')
        prompt = "" if images and line == "" else check_prompt(line, where)
        requests.append(Request(prompt, tuple(path.parent / image for image in images), shape))
    if not requests:
        raise UserError(f"{path} holds no prompts: put one on each line")
    if unread:
        print(f"warning: {path}: {', '.join(unread)}: not read, prompt, images and shape are", file=sys.stderr)
    return requests


def check_prompt(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: the prompt is {text!r}: give some text")
    return text.strip()


if __name__ == "__main__":
    run_command(main)
