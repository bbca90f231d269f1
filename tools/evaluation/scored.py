"""Averages of the official scorers' per-image scores, only if every item has one.

The scorers skip failures and average the rest; a score here covers all images or there is none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.system.errors import UserError
from pretrain.system.strict_json import from_json
from pretrain.system.words import shown
from tools.evaluation.benchmarks import Benchmark, Item
from tools.evaluation.record import require_all
from tools.evaluation.scorers import files_of_item

REMEDY = "let the scorer do all pictures"


def read_scores(benchmark: Benchmark, items: Sequence[Item], path: Path) -> dict[str, float]:
    """Scores by name from a scorer's file. Raises UserError for another format, or a file without all items."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return READERS[benchmark.name](benchmark, items, text, str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give what the scorer wrote") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = f"is not what the scorer of {benchmark.name} writes ({error.__class__.__name__}: {error})"
        raise UserError(f"{path}: {reason}: give its file") from None


def geneval_scores(benchmark: Benchmark, items: Sequence[Item], text: str, path: str) -> dict[str, float]:
    """GenEval's results.jsonl of evaluate_images.py: share of correct images by tag, and the mean over tags."""
    right: dict[str, bool] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):  # U+2028 may be in a prompt
        values = from_json(line)
        name = "/".join(Path(values["filename"]).parts[-3:])
        _once(right, name, path)
        correct = values["correct"]
        if not isinstance(correct, bool):
            raise UserError(
                f"{path} line {number}: correct is {shown(correct)}, neither true nor false: let the scorer do it again"
            )
        right[name] = correct
    expected = {name: item.kind for item in items for name in files_of_item(benchmark, item)}
    _nothing_else(right, expected, path)
    require_all(path, list(expected), right, REMEDY)
    tags: dict[str, list[bool]] = defaultdict(list)
    for name, tag in expected.items():
        tags[tag].append(right[name])
    by_tag = {tag: sum(found) / len(found) for tag, found in tags.items()}
    return {"overall": sum(by_tag.values()) / len(by_tag), **by_tag}


def dpg_scores(benchmark: Benchmark, items: Sequence[Item], text: str, path: str) -> dict[str, float]:
    """DPG-Bench's dpg-bench_*_results.txt: a line "picture, four scores, their mean" per item, then a summary. Of
    100."""
    found: dict[str, float] = {}
    number = r"(\d[\d.e+-]*)"
    for line in text.splitlines():
        match = re.fullmatch(rf"(.+\.png), {number}, {number}, {number}, {number}, {number}", line)
        if match:
            key = Path(match[1]).name.split(".")[0]
            _once(found, key, path)
            marks = [float(match[place]) for place in range(2, 6)]
            if max(marks) > 1:
                raise UserError(f"{path}: {line}: a score is not 0 to 1: give what the scorer wrote")
            found[key] = sum(marks) / 4
    expected = [item.key for item in items]
    _nothing_else(found, expected, path)
    require_all(path, expected, found, REMEDY)
    return {"overall": 100 * sum(found[key] for key in expected) / len(expected)}


def imgedit_scores(benchmark: Benchmark, items: Sequence[Item], text: str, path: str) -> dict[str, float]:
    """ImgEdit's result.json: the judge's text by key; its lines "what: number" are the scores of an edit, from 1 to
    5."""
    found: dict[str, float] = {}
    for key, words in from_json(text).items():
        lines = [line.strip().split(": ") for line in words.splitlines()] if isinstance(words, str) else []
        marks = [int(parts[1]) for parts in lines if len(parts) == 2 and parts[1].isdigit()]
        outside = [mark for mark in marks if not 1 <= mark <= 5]
        if outside:
            raise UserError(f"{path}: {key}: a mark of {outside[0]}, which is not 1 to 5: ask the judge again for it")
        if marks:  # an answer without a number is one that is missing
            found[key] = round(sum(marks) / len(marks), 2)
    expected = {item.key: item.kind for item in items}
    _nothing_else(found, expected, path)
    require_all(f"{path}, answers with a number", list(expected), found, "ask the judge again for these")
    kinds: dict[str, list[float]] = defaultdict(list)
    for key, kind in expected.items():
        kinds[kind].append(found[key])
    by_kind = {kind: sum(marks) / len(marks) for kind, marks in kinds.items()}
    overall = sum(by_kind.values()) / len(by_kind)
    return {"overall": overall, "of_all_items": sum(found.values()) / len(found), **by_kind}


READERS: dict[str, Callable[[Benchmark, Sequence[Item], str, str], dict[str, float]]] = {
    "geneval": geneval_scores,
    "dpg": dpg_scores,
    "imgedit": imgedit_scores,
}


def _once(found: dict, name: str, path: str) -> None:
    if name in found:
        raise UserError(f"{path}: {name} is scored twice: score into a new file")


def _nothing_else(found: dict, expected, path: str) -> None:
    strange = sorted(set(found) - set(expected))
    if strange:
        raise UserError(f"{path}: {strange[0]} is none of the prompt file's: give the one that the pictures are of")
