"""GenEval, DPG-Bench and ImgEdit: images of their prompts, in the layout of the official scorers.

OUTPUT/generations holds every picture with its line of settings and seed, as tools/generate.py leaves them, and makes a
job that was ended go on; OUTPUT/images is the folder for the scorer, made of those and checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.shapes import nearest_shape, size_word
from pretrain.system.errors import UserError
from tokenization.files import save_picture, sha256_of, write_text
from tools.evaluation.benchmarks import (
    BENCHMARKS,
    Benchmark,
    Item,
    digest,
    name_prompts,
    read_items,
    rewritten,
    select,
)
from tools.evaluation.record import export_identity, machine, make_record, read_record, require_all
from tools.evaluation.scored import read_scores
from tools.evaluation.scorers import MISSING, FolderFindings, check, file_name, files_of_item
from tools.generation.prompts import Request, Sampling, shape_number
from tools.generation.record import RECORD, Record, sole_user

if TYPE_CHECKING:
    from tools.export.folder import Export

IMAGES, GENERATIONS = "images", "generations"
JUDGES = {"geneval": "the official scorer's Mask2Former and CLIP", "dpg": "the official scorer's mPLUG", "imgedit": ""}


def items_of(args: Namespace) -> tuple[Benchmark, list[Item], list[Item]]:
    """The benchmark, all its items, with rewritten prompts if given, and the selected ones. Raises UserError."""
    benchmark = BENCHMARKS[args.task]
    items = read_items(benchmark, args.prompts_file)
    if args.rewritten:
        items = rewritten(items, args.rewritten)
    return benchmark, items, select(items, args.per_kind)


def describe_prompts(args: Namespace, benchmark: Benchmark, items: Sequence[Item]) -> dict:
    """Description of the prompts for a result."""
    file = args.prompts_file
    found = {"prompts": name_prompts(benchmark, items), "digest": digest(items), "file": file.name}
    if file.is_file():
        found["file_sha256"] = sha256_of(file)
    if args.rewritten:
        found |= {"rewritten": args.rewritten.name, "rewritten_sha256": sha256_of(args.rewritten)}
    return found


def draw(args: Namespace) -> tuple[dict, FolderFindings]:
    """Generate missing images, lay them out, check them -> the result, the findings. Raises UserError."""
    from tools.export.folder import check_export, open_export
    from tools.generation.arguments import choose_device
    from tools.generation.job import run_job

    benchmark, items, chosen = items_of(args)
    check_export(args.model)
    requests = requests_of(benchmark, chosen, args.pictures)
    sampling = Sampling(
        args.guidance, args.temperature, args.top_k, args.top_p, args.seed, image_guidance=args.image_guidance
    )
    args.output.mkdir(parents=True, exist_ok=True)
    with sole_user(args.output):
        folder = args.output / GENERATIONS
        folder.mkdir(exist_ok=True)
        record = Record(folder, "give another --output")
        device = choose_device(args.device)
        export = open_export(args.model, device, args.dtype)
        dtype = str(export.model.dtype).removeprefix("torch.")
        requests = shaped(export, requests, args.shape, squares=args.task == "dpg")
        run_job(
            export,
            benchmark.task,
            requests,
            benchmark.samples,
            sampling,
            args.batch_size,
            0,
            record,
            [item.number for item in chosen],
            {"dtype": dtype},
        )
        lay_out(benchmark, chosen, record, args.output / IMAGES)
        found = check(benchmark, chosen, args.output / IMAGES, args.pictures)
    settings = {
        "seed": sampling.seed,
        "samples": benchmark.samples,
        "guidance": sampling.guidance,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "dtype": dtype,
        "batch_size": args.batch_size,
        **machine(device),
    }
    if export.templates.shapes:
        settings["shape"] = args.shape or ("nearest to the source" if benchmark.task == "edit" else "1:1")
    if benchmark.task == "edit":
        settings |= {"image_guidance": sampling.image_guidance, "wording": "a user's turn: source picture, instruction"}
    else:
        settings["wording"] = export.templates.text_to_image[0]
    sides = sorted(found.sides)
    result = make_record(
        args.task,
        expected=sum(len(files_of_item(benchmark, item)) for item in items),
        done=len(found.good),
        model=export_identity(args.model),
        data={**describe_prompts(args, benchmark, items), "items": len(chosen), "of": len(items)},
        settings=settings,
        pictures={"sha256": found.digest, "sides": [list(side) for side in sides], "wrong": found.wrong},
    )
    return result, found


def finish(args: Namespace, found: FolderFindings, path: Path) -> None:
    """Print what was made. Raises UserError if something is missing or wrong."""
    benchmark, items, chosen = items_of(args)
    folder = args.output / IMAGES
    names = [name for item in chosen for name in files_of_item(benchmark, item)]
    if any(why != MISSING for why in found.wrong.values()):
        raise UserError(f"{folder}: {found.explain()}: remove what is wrong, then give the same command again")
    reasons = args.output / GENERATIONS / RECORD
    require_all(str(folder), names, found.good, f"see the errors in {reasons}, then give the same command again")
    part = "" if len(chosen) == len(items) else f", of {len(chosen)} of {len(items)} items: no set to average"
    line = f"{folder}: {len(found.good)} pictures are as the scorer of {benchmark.name} reads them{part}"
    print(f"{line}; {name_prompts(benchmark, items)} prompts; {path}")


def requests_of(benchmark: Benchmark, items: Sequence[Item], sources: Path | None) -> list[Request]:
    """Generation requests of the items. Raises UserError for a missing source image."""
    if benchmark.task != "edit":
        return [Request(item.prompt.strip()) for item in items]
    if sources is None:
        raise UserError(f"--pictures is missing: give the folder of the {benchmark.name} source pictures")
    absent = [item.source for item in items if not (sources / item.source).is_file()]
    if absent:
        raise UserError(
            f"--pictures {sources}: has no {absent[0]} ({len(absent)} are missing): give the folder of the "
            f"{benchmark.name} source pictures"
        )
    return [Request(item.prompt.strip(), (sources / item.source,)) for item in items]


def shaped(export: Export, requests: Sequence[Request], shape: str, squares: bool = False) -> list[Request]:
    """Requests with their shapes: `shape`, or a square, or for an edit the nearest to its first source.

    The pictures of an item must be of one size to be laid out, so none is left to the model. Raises UserError for a shape
    that the model does not draw, and for another than the square where a scorer reads `squares` only.
    """
    from model.hf.pictures_uni_x import upright
    from tokenization.preprocess import RejectedImage, open_image

    if shape_number(export, shape) and squares:
        raise UserError(f"--shape {shape}: the scorer of DPG-Bench cuts its files into four squares: leave it out")
    grids = export.templates.shapes
    if not grids:
        return list(requests)
    found = []
    for request in requests:
        wanted = shape or "1:1"
        if not shape and request.images:
            with contextlib.suppress(RejectedImage):  # a damaged source gets a line of its own later
                wanted = size_word(grids[nearest_shape(grids, *upright(open_image(request.images[0])).size)])
        found.append(replace(request, shape=wanted))
    return found


def lay_out(benchmark: Benchmark, items: Sequence[Item], record: Record, folder: Path) -> None:
    """Put the images of a record where the scorer looks for them; for DPG-Bench four become one grid."""
    folder.mkdir(exist_ok=True)
    for item in items:
        lines = [record.lines.get((item.number, sample), {}) for sample in range(benchmark.samples)]
        pictures = [record.folder / line["file"] for line in lines if "file" in line]
        if len(pictures) < benchmark.samples:
            continue  # a source picture was damaged: its line says so
        if benchmark.name == "geneval":
            (folder / item.key / "samples").mkdir(parents=True, exist_ok=True)
            write_text(folder / item.key / "metadata.jsonl", item.line + "\n")
        if benchmark.name == "dpg":
            save_grid(pictures, folder / file_name(benchmark, item))
        else:
            for sample, picture in enumerate(pictures):
                link(picture, folder / file_name(benchmark, item, sample))


def save_grid(pictures: Sequence[Path], path: Path) -> None:
    """Four images of one size as one, two by two, row by row."""
    from PIL import Image

    opened = [Image.open(picture).convert("RGB") for picture in pictures]
    width, height = opened[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for number, picture in enumerate(opened):
        grid.paste(picture, (number % 2 * width, number // 2 * height))
    save_picture(grid, path)


def link(source: Path, target: Path) -> None:
    """Hard link, or a copy where the file system has none."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # os.replace leaves it where both are one file already


def check_only(args: Namespace) -> None:
    """Check OUTPUT/images, or OUTPUT itself with another tool's images, against all items. Raises UserError."""
    benchmark, items, chosen = items_of(args)
    folder = args.output / IMAGES if (args.output / IMAGES).is_dir() else args.output
    found = check(benchmark, chosen, folder, args.pictures)
    names = [name for item in chosen for name in files_of_item(benchmark, item)]
    if found.wrong:
        good = f"{len(found.good)} of {len(names)} pictures are as the scorer of {benchmark.name} reads them"
        raise UserError(f"{folder}: {good}; {found.explain()}")
    side = sorted(found.sides)
    more = f"; its resolution is {side[0][0] // 2}" if benchmark.name == "dpg" and side else ""
    print(json.dumps({"folder": str(folder), "pictures": len(names), "sha256": found.digest}) + more)


def score(args: Namespace) -> dict:
    """Average of a scorer's file, with the generation settings -> the result. Raises UserError.

    Pictures that this tool did not make are not known; their result says so.
    """
    benchmark, items, chosen = items_of(args)
    if len(chosen) < len(items):
        raise UserError(f"--per-kind {args.per_kind}: no average of {len(chosen)} of {len(items)} items: leave it out")
    scores = read_scores(benchmark, items, args.scored)
    made = args.output / f"{args.task}.json"
    drawn = read_record(made) if made.is_file() else {"model": {"from": "not known"}, "settings": {}, "data": {}}
    described = describe_prompts(args, benchmark, items)
    if made.is_file() and drawn["data"]["digest"] != described["digest"]:
        raise UserError(f"{made}: was drawn for other prompts than {args.prompts_file} has: give those prompts")
    if not drawn.get("complete", True):
        items_drawn = drawn["items"]
        raise UserError(
            f"{made}: is of {items_drawn['done']} of {items_drawn['expected']} pictures, the scores are of all: draw the "
            "others by the same command, or move the file away"
        )
    data = {**described, "scored": args.scored.name, "scored_sha256": sha256_of(args.scored)}
    pictures = drawn.get("pictures", {}).get("sha256", "")
    settings = {**drawn["settings"], "judge": args.judge or JUDGES[args.task]}
    count = len(items) * (benchmark.samples if args.task == "geneval" else 1)
    return make_record(
        f"{args.task}-scores",
        count,
        count,
        model=drawn["model"],
        data=data,
        settings=settings,
        scores=scores,
        pictures={"sha256": pictures},
    )
