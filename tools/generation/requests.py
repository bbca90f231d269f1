"""Requests of tools/generate.py: the task, and a request for each prompt, image or line of a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretrain.system.errors import UserError
from pretrain.system.strict_json import from_json
from pretrain.system.words import counted, is_unicode
from tools.generation.prompts import PICTURE_TASKS, Request
from tools.generation.record import Record

SKILLS = ("draw", "edit", "caption", "chat")  # as exports record them
PROMPT_SUFFIXES = ("", ".txt", ".jsonl")


def without_effect(args: argparse.Namespace, task: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options of `parser` that were given and have no effect on this task, a line each."""
    pictures, texts = (
        ("guidance", "temperature", "num_images", "preview"),
        ("text_temperature", "max_new_tokens", "chat"),
    )
    both = (*pictures[:2], *texts, "max_images")
    used = {"draw": pictures, "edit": (*pictures, "image_guidance"), "interleaved": both}.get(task, texts)
    given = [name for name in vars(args) if getattr(args, name) != parser.get_default(name)]
    for name in sorted({*pictures, *both, "image_guidance"} - {*used}):
        if name in given:
            yield f"--{name.replace('_', '-')} changes nothing of --task {task}"
    draws, writes = task in (*PICTURE_TASKS, "interleaved"), task not in PICTURE_TASKS
    if not (draws and args.temperature) and not (writes and args.text_temperature):
        least = "--temperature 0" if draws else "--text-temperature 0, the default"
        for name in ("seed", "top_k", "top_p"):
            if name in given:
                yield f"--{name.replace('_', '-')} changes nothing at {least}, which takes the likeliest"


def not_of_model(args: argparse.Namespace, task: str, skills: object, rows: int) -> Iterator[str]:
    """A line for what this model does not do: a task that its training data did not teach, as its config.json records it; previews
    of pictures that have no more than `rows` rows of codes."""
    if args.preview >= rows and task in PICTURE_TASKS:
        yield f"--preview {args.preview} changes nothing: pictures have at most {rows} rows of codes"
    needed = "chat" if args.chat and task not in PICTURE_TASKS else task
    if isinstance(skills, list) and needed in SKILLS and needed not in skills:
        asked = "--chat" if needed == "chat" else f"--task {task}"
        known = ", ".join(map(str, skills)) or "none"
        yield f"{asked}: the model's training data did not teach it (skills in config.json: {known}); expect nothing of the results"


def where(record: Record, task: str) -> str:
    """Line on where the results are."""
    made = [line for line in record.lines.values() if "error" not in line]
    sheets = record.sheets() if task in PICTURE_TASKS else []
    more = f" to {sheets[-1].name}" if len(sheets) > 1 else ""
    look = f", all of them on {sheets[0]}{more}" if sheets else ""
    what = {"caption": "caption", "text": "text", "interleaved": "document"}.get(task, "picture")
    return f"{record.folder}: {counted(len(made), what)}{look}, each with its prompt and settings in {record.path.name}"


def read_requests(args: argparse.Namespace) -> tuple[str, list[Request]]:
    """Task and requests, from the flags and the prompts file. Raises UserError for wrong combinations."""
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
            if not is_file(image):
                raise UserError(f"{str(image)[:200]}: there is no such picture: give the path of a picture file")
    return task, requests


def asked_shape(args: argparse.Namespace, task: str, listed: Sequence[Request]) -> str:
    """Shape that the flags ask for, empty for none. Raises UserError for an impossible one."""
    if (args.shape or args.size or any(request.shape for request in listed)) and task not in PICTURE_TASKS:
        raise UserError(f'--task {task} draws no picture of a given shape: leave out --shape, --size and "shape"')
    if args.shape and args.size:
        raise UserError("--shape and --size say the same in two ways: give one of them")
    width, _, height = args.size.lower().partition("x")
    if args.size and not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"--size {args.size}: give WIDTHxHEIGHT in pixels, as 768x512")
    return f"{width}:{height}" if args.size else args.shape


def read_prompts(path: Path) -> list[Request]:
    """Requests of a text file (a prompt per line) or a JSON-lines file; empty lines are skipped."""
    if path.suffix.lower() not in PROMPT_SUFFIXES:
        raise UserError(
            f"--prompts-file {path}: {path.suffix} files are not read (each line would become a prompt, a header too): give a .txt "
            'file with a prompt a line, or a .jsonl file with lines like {"prompt": TEXT}'
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() also cuts texts, at U+2028 for one
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
                values = from_json(line)
                images = values.get("images", [])
                shape = values.get("shape", "")
                line = values.get("prompt", "") if images else values["prompt"]
                unread |= {key: None for key in values if key not in ("prompt", "images", "shape")}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                why = f" ({error})" if isinstance(error, ValueError | RecursionError) else ""
                raise UserError(f'{where}: not of the form {{"prompt": TEXT}}{why}') from None
            if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
                raise UserError(f"{where}: images is {images!r}: give a list of file names") from None
        elif is_json_line(line):
            raise UserError(
                f"{where}: {line.strip()[:60]!r} would become the prompt as it stands: name the file .jsonl"
            )
        if not isinstance(shape, str):
            raise UserError(f'{where}: shape is {shape!r}: give a ratio of width to height as "4:3"')
        prompt = "" if images and line == "" else check_prompt(line, where)
        requests.append(Request(prompt, tuple(path.parent / image for image in images), shape))
    if not requests:
        raise UserError(f"{path} holds no prompts: put one on each line")
    if unread:
        print(f"warning: {path}: {', '.join(unread)}: not read, prompt, images and shape are", file=sys.stderr)
    return requests


def is_json_line(line: str) -> bool:
    """Whether a line of a text file is a JSON object with a prompt, as lines of a .jsonl file are."""
    try:
        return line.lstrip().startswith("{") and "prompt" in from_json(line)
    except (ValueError, RecursionError):
        return False


def check_prompt(text: object, where: str) -> str:
    """The prompt without surrounding white space. Raises UserError for anything but a text."""
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: the prompt is {text!r}: give some text")
    if not is_unicode(text):
        raise UserError(f"{where}: the prompt {ascii(text[:60])} is not valid Unicode: give it in UTF-8")
    return text.strip()


def is_file(path: Path) -> bool:
    """Whether a file is there; a name that is too long for the system is none."""
    try:
        return path.is_file()
    except OSError:
        return False
