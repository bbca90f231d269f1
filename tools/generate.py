"""Prompts -> pictures, or pictures -> captions, with an exported Uni-X model."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from model.errors import UserError, run_command
from model.prompts import image_to_text_ids, text_to_image_ids, unconditional_ids

if TYPE_CHECKING:
    from PIL import Image

    from tools.export_folder import Export

EPILOG = """\
examples:
  python tools/generate.py --model work/demo/model --prompt "red apple" --output pictures
  python tools/generate.py --model work/demo/model --prompts-file prompts.txt --num-images 1 --output pictures
  python tools/generate.py --model work/demo/model --image apple.png --output captions
  python tools/generate.py --model work/demo/model --image apple.png --prompt "What colour is it?" --output answers

OUTPUT gets generations.jsonl (one line a picture or caption: prompt, seed, file, settings), and for pictures
PPPP-KK.png (picture K of prompt P) and contact_sheet.png. Captions are printed too, and are the likeliest ones.

Picture K of prompt P depends on --seed, P, K, the prompt and the sampling settings, not on --batch-size or on
--num-images, beyond the rounding of another batch shape. Exit codes: 0 done, 1 failed, 2 wrong usage or input.
"""
SHEET_CELL, SHEET_PICTURES = 192, 240  # pixels of a picture's side, and most pictures, of one contact sheet


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn. The defaults of the command are the published ones: the paper's guidance, and the released
    code's temperature, top-k and top-p."""

    guidance: float
    temperature: float
    top_k: int
    top_p: float
    seed: int


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="generate.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="DIR", help="folder that tools/convert_to_hf.py wrote")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    add("--prompt", action="append", default=[], metavar="TEXT", help="a caption to draw; with --image, a question")
    add("--prompts-file", type=Path, metavar="FILE", help='.txt, a prompt a line, or .jsonl, {"prompt": TEXT} a line')
    add("--image", action="append", default=[], type=Path, metavar="FILE", help="a picture to caption; repeatable")
    add("--num-images", type=at_least(1, int), default=4, metavar="N", help="pictures a prompt (default 4)")
    add("--guidance", type=at_least(0, float), default=4.0, help="classifier-free guidance, 1 for none (default 4)")
    add("--temperature", type=at_least(0, float), default=0.99, help="of the codes, 0 for the likeliest (default 0.99)")
    add("--top-k", type=at_least(0, int), default=4096, help="likeliest codes kept, 0 for all (default 4096)")
    add("--top-p", type=share, default=0.96, help="probability mass kept (default 0.96)")
    add("--seed", type=int, default=0, help="of all chance (default 0)")
    add("--batch-size", type=at_least(1, int), default=16, help="pictures at a time (default 16)")
    add("--max-new-tokens", type=at_least(1, int), default=64, help="longest caption (default 64)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: the GPU if there is one")
    return parser


def at_least(lowest: int, number: type):
    def parse(text: str):
        value = number(text)
        if not lowest <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {lowest}")
        return value

    parse.__name__ = number.__name__
    return parse


def share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    prompts = [check_prompt(text, "--prompt") for text in args.prompt]
    if args.prompts_file:
        prompts += read_prompts(args.prompts_file)
    if not prompts and not args.image:
        raise UserError("nothing to do: give --prompt, --prompts-file or --image")
    from tools.export_folder import check_export, open_export

    check_export(args.model)  # before the seconds that it takes to import torch
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be made ({error.strerror}): give another folder") from None
    export = open_export(args.model, choose_device(args.device))
    with record_file(args.output / "generations.jsonl") as record:
        if args.image:
            caption_pictures(export, args.image, prompts, args.max_new_tokens, record)
        else:
            sampling = Sampling(args.guidance, args.temperature, args.top_k, args.top_p, args.seed)
            draw_prompts(export, prompts, args.num_images, sampling, args.batch_size, args.output, record)
    return 0


def choose_device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here: use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file (one a line) or a JSON-lines file (key `prompt`); empty lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a .txt or .jsonl file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            try:
                line = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f'{path} line {number}: not of the form {{"prompt": TEXT}}') from None
        prompts.append(check_prompt(line, f"{path} line {number}"))
    if not prompts:
        raise UserError(f"{path} holds no prompts: put one on each line")
    return prompts


def check_prompt(text: object, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: the prompt is {text!r}: give some text")
    return text.strip()


@contextmanager
def record_file(path: Path) -> Iterator[TextIO]:
    """`generations.jsonl`, line by line as things are made, so that an interrupted run keeps what it has."""
    with path.open("w", encoding="utf-8", buffering=1) as file:
        yield file


def sample_seed(seed: int, prompt: int, sample: int) -> int:
    """Seed of picture `sample` of prompt number `prompt`: 63 bits that depend on all three numbers."""
    digest = hashlib.blake2b(f"{seed}/{prompt}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_prompts(
    export: Export,
    prompts: list[str],
    num_images: int,
    sampling: Sampling,
    batch_size: int,
    output: Path,
    record: TextIO,
) -> None:
    """Draw `num_images` pictures of every prompt; write them, their contact sheet and a line about each."""
    from tqdm import tqdm

    ids = [text_to_image_ids(text, export.encode, export.vocabulary, export.templates) for text in prompts]
    for text, row in zip(prompts, ids, strict=True):
        check_length(export, len(row) + export.templates.grid[0] * export.templates.grid[1], text)
    jobs = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(num_images)]
    shown, labels = [], []
    with tqdm(total=len(jobs), unit="picture", desc="drawing") as progress:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            seeds = [sample_seed(sampling.seed, *job) for job in batch]
            pictures = draw_batch(export, [ids[prompt] for prompt, _ in batch], seeds, sampling)
            for (prompt, sample), seed, picture in zip(batch, seeds, pictures, strict=True):
                name = f"{prompt:04d}-{sample:02d}.png"
                picture.save(output / name)
                line = {
                    "task": "text_to_image",
                    "prompt": prompts[prompt],
                    "prompt_index": prompt,
                    "sample_index": sample,
                    "sample_seed": seed,
                    "file": name,
                    "settings": vars(sampling),
                }
                record.write(json.dumps(line, ensure_ascii=False) + "\n")
                shown.append(picture)
                labels.append(f"{prompt}-{sample} {prompts[prompt]}")
            progress.update(len(batch))
    write_sheets(shown, labels, num_images, output)


def draw_batch(export: Export, prompts: list[list[int]], seeds: list[int], sampling: Sampling) -> list[Image.Image]:
    """One picture a prompt; each row of ids ends with `<|vision_start|>` and has a seed of its own."""
    import torch

    rows, columns = export.templates.grid
    width = max(map(len, prompts))
    padded = [[export.vocabulary.eos_id] * (width - len(row)) + row for row in prompts]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in prompts]
    device = export.model.device
    unconditional = unconditional_ids(export.encode, export.vocabulary, export.templates)
    codes = export.model.generate_images(
        torch.tensor(padded, device=device),
        torch.tensor(mask, device=device),
        torch.tensor(unconditional, device=device),
        num_codes=rows * columns,
        guidance_scale=sampling.guidance,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    )
    return export.vq.decode(codes.view(len(prompts), rows, columns))


def write_sheets(pictures: list[Image.Image], labels: list[str], num_images: int, output: Path) -> None:
    """`contact_sheet.png`, then `contact_sheet-2.png` and so on: a row a prompt, or a block where a prompt has one."""
    from PIL import Image

    from tokenization.contact_sheet import contact_sheet

    columns = num_images if 1 < num_images <= 12 else 8
    a_sheet = SHEET_PICTURES // columns * columns
    for sheet, start in enumerate(range(0, len(pictures), a_sheet), 1):
        shown = pictures[start : start + a_sheet]
        if shown[0].width > SHEET_CELL:
            shown = [picture.resize((SHEET_CELL, SHEET_CELL), Image.Resampling.LANCZOS) for picture in shown]
        name = "contact_sheet.png" if sheet == 1 else f"contact_sheet-{sheet}.png"
        contact_sheet(shown, labels[start : start + a_sheet], columns, SHEET_CELL).save(output / name)


def caption_pictures(
    export: Export, images: list[Path], questions: list[str], max_new_tokens: int, record: TextIO
) -> None:
    """Caption every picture, or answer every question about it; print the texts and write a line about each."""
    import torch

    from tokenization.preprocess import open_image, preprocess

    wordings = questions or [export.templates.image_to_text[0]]
    pictures = [preprocess(open_image(path), export.vq.image_size) for path in images]  # all, before the slow part
    for path, picture in zip(images, pictures, strict=True):
        codes = export.vq.encode([picture])[0]
        for wording in wordings:
            prompt = image_to_text_ids(codes.flatten(), export.encode, export.vocabulary, export.templates, wording)
            check_length(export, len(prompt) + max_new_tokens, wording)
            ids = torch.tensor([prompt], device=export.model.device)
            found = export.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=export.vocabulary.eos_id,
                pad_token_id=export.vocabulary.eos_id,
                logits_processor=export.model.text_only(),
            )
            text = export.decode(found[0, len(prompt) :].tolist()).strip()
            print(f"{path}: {text}")
            line = {
                "task": "image_to_text",
                "image": str(path),
                "prompt": wording,
                "text": text,
                "settings": {"max_new_tokens": max_new_tokens},
            }
            record.write(json.dumps(line, ensure_ascii=False) + "\n")


def check_length(export: Export, tokens: int, prompt: str) -> None:
    limit = export.model.config.max_position_embeddings
    if tokens > limit:
        raise UserError(f"prompt {prompt[:60]!r} needs {tokens} tokens, the model has {limit}: shorten it")


if __name__ == "__main__":
    run_command(main)
