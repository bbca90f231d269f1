"""Result files and record lines of a batch, and contact sheets of all images."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.files import save_picture
from tools.generation.batches import document_batch, draw_batch, partial_picture, write_batch
from tools.generation.prompts import Request, Sampling, codes_of, prompt_ids, shape_number

if TYPE_CHECKING:
    from tools.export.folder import Export
    from tools.generation.record import Record

SHEET_CELL, SHEET_PICTURES = 192, 240  # pixels of a picture's side, and most pictures, of one contact sheet


def make_batch(
    export: Export,
    task: str,
    batch: Sequence[tuple[Request, dict]],
    sampling: Sampling,
    folder: Path,
    preview: int = 0,
) -> list[dict]:
    """Make the results of some requests, write their images -> their lines, in order.

    A request whose picture is damaged gets a line with an `error` in place of a result, and the others go on.
    """
    from tokenization.preprocess import RejectedImage

    lines: list[dict] = []
    prompts: list[list[int]] = []
    sources_only: list[list[int]] = []  # of edits
    shapes: list[int | None] = []
    for request, job in batch:
        try:
            whole, image_only = prompt_ids(export, task, request, codes_of(export, request), sampling.chat)
        except RejectedImage as error:
            lines.append({**job, "error": str(error)})
            continue
        lines.append(dict(job))
        prompts.append(whole)
        sources_only.append(image_only or [])
        shapes.append(shape_number(export, request.shape))
    made = [line for line in lines if "error" not in line]
    if not made:
        return lines
    seeds = [line["sample_seed"] for line in made]
    if task in ("draw", "edit"):
        names = [name_of(line) for line in made]
        on_codes = previews(export, folder, names, preview) if preview else None
        guides = sources_only if task == "edit" else None
        pictures = draw_batch(export, prompts, seeds, sampling, guides, on_codes, shapes)
        for line, picture, name in zip(made, pictures, names, strict=True):
            save_picture(picture, folder / f"{name}.png")
            line["file"] = f"{name}.png"
            if export.templates.shapes:
                line["size"] = f"{picture.width}x{picture.height}"
            (folder / f"{name}.partial.png").unlink(missing_ok=True)
    elif task == "interleaved":
        for line, parts in zip(made, document_batch(export, prompts, seeds, sampling), strict=True):
            line["parts"] = []
            for number, part in enumerate(parts):
                if isinstance(part, str):
                    line["parts"].append({"text": part})
                else:
                    name = f"{name_of(line)}-{number:02d}.png"
                    save_picture(part, folder / name)
                    line["parts"].append({"file": name})
    else:
        for line, text in zip(made, write_batch(export, prompts, seeds, sampling), strict=True):
            line["text"] = text
    return lines


def say(line: dict) -> None:
    """Print a result that is a text. It is recorded already: a letter that the output cannot encode is escaped, and when the
    output's reader has left, as `| head` does, the job goes on without it."""
    if "parts" in line:
        words = f"{line['prompt_index']:04d}: " + " ".join(p.get("text") or f"[{p['file']}]" for p in line["parts"])
    elif "text" in line:
        words = f"{', '.join(line['images']) if 'images' in line else line['prompt']}: {line['text']}"
    else:
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(words.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def name_of(line: dict) -> str:
    """PPPP-KK of a result: its prompt number and sample number."""
    return f"{line['prompt_index']:04d}-{line['sample_index']:02d}"


def previews(export: Export, folder: Path, names: Sequence[str], rows: int):
    """Callback that writes previews whenever `rows` more rows of codes are generated."""

    def write(codes, grids) -> None:
        drawn = codes.shape[1]
        for name, row, grid in zip(names, codes, grids, strict=True):
            if drawn % (rows * grid[1]) == 0 and drawn < grid[0] * grid[1]:
                save_picture(partial_picture(export, row, grid), folder / f"{name}.partial.png")

    return write


def write_sheets(record: Record) -> None:
    """Write `contact_sheet.png`, `contact_sheet-2.png` and so on, of all recorded images: a row per prompt, or a block where a
    prompt has one image."""
    from PIL import Image

    from tokenization.contact_sheet import contact_sheet, inside

    shown = [line for _, line in sorted(record.lines.items()) if "file" in line]
    samples = max((line["sample_index"] for line in shown), default=0) + 1
    columns = samples if 1 < samples <= 12 else 8
    a_sheet = SHEET_PICTURES // columns * columns
    written = set()
    for sheet, start in enumerate(range(0, len(shown), a_sheet), 1):
        lines = shown[start : start + a_sheet]
        pictures: list[Image.Image] = [Image.open(record.folder / line["file"]) for line in lines]
        if max(max(picture.size) for picture in pictures) > SHEET_CELL:
            pictures = [
                picture.resize(inside(picture.size, SHEET_CELL), Image.Resampling.LANCZOS) for picture in pictures
            ]
        labels = [f"{line['prompt_index']}-{line['sample_index']} {line['prompt']}" for line in lines]
        name = "contact_sheet.png" if sheet == 1 else f"contact_sheet-{sheet}.png"
        save_picture(contact_sheet(pictures, labels, columns, SHEET_CELL), record.folder / name)
        written.add(name)
    record.remove_sheets(written)  # not before: a full disk leaves the former ones
