"""Input format of the official scorers, so that a folder can be checked without their models.

Each rule was taken from the scorer's own code. None of them counts what it reads, so a picture that is missing only
makes the mean one of fewer pictures, and one too many is scored too: hence the check here.

- GenEval, evaluation/evaluate_images.py: every subfolder whose name is digits; metadata.jsonl in it, read as one JSON
  value; every file in samples/ whose name begins with digits and ".png".
- DPG-Bench, dpg_bench/compute_dpg_bench.py with PIC_NUM=4: every entry of the folder; the item's key is the name up to
  its first dot, and the four pictures are the squares of side R at (0, 0), (R, 0), (0, R) and (R, R). What fails is
  printed and left out of the mean. Its own results go into the same folder.
- ImgEdit, Benchmark/Basic/basic_bench.py: KEY.png for every key of the prompt file, and the source picture ROOT/id. Its
  result.json goes into the same folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.evaluation.benchmarks import Benchmark, Item

MISSING = "is missing"
OWN_FILES = {  # what the scorers write beside the pictures
    "geneval": re.compile(r"(?!)"),
    "dpg": re.compile(r"dpg-bench_.*\.txt"),
    "imgedit": re.compile(r"(result|.*score.*)\.json"),
}


@dataclass
class FolderFindings:
    """Findings of a check: names of good images, and by name what is missing or wrong, in the order of the items."""

    good: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    sides: set[tuple[int, int]] = field(default_factory=set)
    digest: str = ""  # SHA-256 over the pixels of all expected pictures, in order; empty unless all are good

    def explain(self) -> str:
        """The first problems, in words."""
        problems = [f"{name} {why}" for name, why in list(self.wrong.items())[:3]]
        return "; ".join(problems) + (f"; and {len(self.wrong) - 3} more" if len(self.wrong) > 3 else "")


def file_name(benchmark: Benchmark, item: Item, sample: int = 0) -> str:
    """Path where the scorer looks for an image, in its folder."""
    if benchmark.name == "geneval":
        return f"{item.key}/samples/{sample:04d}.png"
    return f"{item.key}.png"


def files_of_item(benchmark: Benchmark, item: Item) -> list[str]:
    """Files of an item: four for GenEval, else one."""
    samples = benchmark.samples if benchmark.name == "geneval" else 1
    return [file_name(benchmark, item, sample) for sample in range(samples)]


def entries(benchmark: Benchmark, folder: Path) -> set[str]:
    """All files that the scorer would read as images, by relative name."""
    if not folder.is_dir():
        return set()
    if benchmark.name == "geneval":
        items = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
        samples = [path for item in items if (item / "samples").is_dir() for path in (item / "samples").iterdir()]
        return {
            path.relative_to(folder).as_posix()
            for path in samples
            if path.is_file() and re.match(r"\d+\.png", path.name)
        }
    names = {path.name for path in folder.iterdir() if not OWN_FILES[benchmark.name].fullmatch(path.name)}
    return names if benchmark.name == "dpg" else {name for name in names if name.endswith(".png")}


def check(benchmark: Benchmark, items: Sequence[Item], folder: Path, sources: Path | None = None) -> FolderFindings:
    """Check a folder as the scorer reads it: every expected image once, readable, in its format, and nothing else.

    `sources` is the folder of ImgEdit's source pictures, which its scorer shows to the judge.
    """
    found, pixels = FolderFindings(), hashlib.sha256()
    expected = {name: item for item in items for name in files_of_item(benchmark, item)}
    if benchmark.name == "geneval":
        for item in items:
            problem = _metadata_problem(folder / item.key / "metadata.jsonl", item)
            if problem:
                found.wrong[f"{item.key}/metadata.jsonl"] = problem
    for name, item in expected.items():
        picture, problem = _picture(folder / name)
        if picture is not None and benchmark.name == "dpg" and (picture.width != picture.height or picture.width % 2):
            problem = f"is {picture.width} x {picture.height}, not a grid of two by two squares"
        if not problem and sources is not None and not (sources / item.source).is_file():
            problem = f"has no source picture {sources / item.source}"
        if problem:
            found.wrong[name] = problem
            continue
        found.good.append(name)
        found.sides.add(picture.size)
        pixels.update(f"{name} {picture.size}\n".encode())
        pixels.update(picture.convert("RGB").tobytes())
    for name in sorted(entries(benchmark, folder) - set(expected)):
        found.wrong[name] = "is none of the pictures, and the scorer would read it"
    if benchmark.name == "dpg" and len(found.sides) > 1:
        found.wrong[folder.name] = f"has grids of several sizes {sorted(found.sides)}, the scorer is told one"
    found.digest = "" if found.wrong else pixels.hexdigest()
    return found


def _picture(path: Path):
    """(decoded image, "") or (None, what is wrong)."""
    from tokenization.preprocess import RejectedImage, open_image

    if not path.is_file():
        return None, MISSING
    try:
        picture = open_image(path)
    except RejectedImage as error:
        return None, f"is not readable: {error.detail}"
    return (picture, "") if picture.format == "PNG" else (None, f"is a {picture.format} file, not PNG")


def _metadata_problem(path: Path, item: Item) -> str:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return MISSING
    except ValueError:
        return "is not one JSON value"
    return "" if values == json.loads(item.line) else f"is not line {item.number + 1} of the prompt file"
