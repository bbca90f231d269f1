"""Benchmarks of image generation and editing: their prompt files, their items, and whether these are the official ones.

GenEval (djghosh13/geneval), DPG-Bench (TencentQQGYLab/ELLA) and ImgEdit Basic (PKU-YuanGroup/ImgEdit). Prompts are the
user's own copies. Numbers of published tables often come from rewritten prompts, so a digest over all items and another
one over all but the prompts tell official, rewritten and other prompts apart.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.system.errors import UserError
from pretrain.system.strict_json import from_json
from pretrain.system.words import is_unicode, shown


@dataclass(frozen=True)
class Item:
    """One prompt. `number` is its position in the official order, from which seeds follow; files are named by `key`.

    `kind` is its group in the benchmark. `frame` is what else the benchmark says of it, such as the objects to find;
    `source` names the picture of an edit, below a folder of the user's.
    """

    number: int
    key: str
    prompt: str
    kind: str
    frame: dict
    source: str = ""
    line: str = ""  # GenEval's line of metadata, as it stands in the file


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its number of items and of images each, and the digests of its official items."""

    name: str
    task: str  # of tools/generate.py
    items: int
    samples: int  # pictures of an item
    official: str  # digest of keys, frames and prompts
    frames: str  # digest of keys and frames
    read: Callable[[Path], list[Item]]


def read_items(benchmark: Benchmark, path: Path) -> list[Item]:
    """Items of a prompt file in official order. Raises UserError for another format or duplicate keys."""
    try:
        items = benchmark.read(path)
    except (ValueError, RecursionError) as error:
        reason = f"is no prompt file of {benchmark.name} ({error})"
        raise UserError(f"{path} {reason}: give the official file") from None
    except OSError as error:
        name = error.filename or path
        raise UserError(f"{name} cannot be read ({error.strerror}): give the prompt file of {benchmark.name}") from None
    if not items:
        raise UserError(f"{path} holds no prompts: give the prompt file of {benchmark.name}")
    for item in items:
        check_prompt(item, path, "give the official file")
        if not _safe(item.key) or "/" in item.key or (item.source and not _safe(item.source)):
            name = item.source if _safe(item.key) and "/" not in item.key else item.key
            raise UserError(f"{path}: {name!r} is no name of a file inside a folder: correct it")
    key, count = Counter(item.key for item in items).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: item {key} is there {count} times: give each key once")
    return items


def check_prompt(item: Item, path: Path, remedy: str) -> None:
    """Raises UserError for a prompt without words or with half of a surrogate pair."""
    if not is_unicode(item.prompt):
        raise UserError(f"{path}: item {item.key} has a prompt that is not valid Unicode: {remedy}")
    if not item.prompt.strip():
        raise UserError(f"{path}: item {item.key} has an empty prompt: {remedy}")


def geneval_items(path: Path) -> list[Item]:
    """GenEval's evaluation_metadata.jsonl: a line per item; its number names the folder."""
    items = []
    for number, (line, values) in enumerate(objects(path)):
        prompt, tag = texts(f"line {number + 1}", values, "prompt", "tag")
        frame = {key: value for key, value in values.items() if key != "prompt"}
        items.append(Item(number, f"{number:05d}", prompt, tag, frame, line=line))
    return items


def dpg_items(path: Path) -> list[Item]:
    """DPG-Bench: the official folder of KEY.txt, or JSON lines {"id": KEY, "prompt": TEXT}; sorted by key.

    Other keys of a line are left alone, as the columns of the official table that are for its scorer.
    """
    if path.is_dir():
        prompts = {}
        for file in sorted(path.iterdir()):
            if file.name.startswith("."):
                continue  # of a file manager or of version control
            if file.suffix != ".txt" or not file.is_file():
                raise ValueError(f"{file.name} is no KEY.txt")
            prompts[file.stem] = file.read_text(encoding="utf-8-sig")
    else:
        found = [
            texts(f"line {number}", values, "id", "prompt") for number, (_, values) in enumerate(objects(path), start=1)
        ]
        prompts = {key: prompt for key, prompt in found}
        if len(prompts) < len(found):
            raise ValueError("an id is there twice")
    dotted = next((key for key in prompts if "." in key), None)
    if dotted:
        raise ValueError(f"the scorer takes a picture's name up to the first dot for its key, and {dotted!r} has one")
    return [
        Item(number, key, prompts[key].strip(), _letters(key) or "plain", {})
        for number, key in enumerate(sorted(prompts))
    ]


def imgedit_items(path: Path) -> list[Item]:
    """ImgEdit's basic_edit.json: {key: {"id": picture, "prompt": text, "edit_type": kind}}, in the file's order."""
    found = from_json(path.read_text(encoding="utf-8-sig"))
    if not isinstance(found, dict):
        raise ValueError("it holds no object of items")
    items = []
    for number, (key, value) in enumerate(found.items()):
        prompt, kind, source = texts(f"item {key}", value, "prompt", "edit_type", "id")
        items.append(Item(number, key, prompt, kind, {"id": source, "edit_type": kind}, source=source))
    return items


def objects(path: Path) -> Iterator[tuple[str, Any]]:
    """(line, its JSON value) of a file. Only a line feed ends a line: JSON may hold U+2028 and others as they are.

    Raises ValueError with the line's number.
    """
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            yield line.strip(), from_json(line)
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else f"no JSON: {error}"
            raise ValueError(f"line {number}: {why}") from None


def texts(where: str, values: Any, *names: str) -> tuple[str, ...]:
    """Values of an item that must be texts. Raises ValueError."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: is no object")
    for name in names:
        if name not in values:
            raise ValueError(f"{where}: has no {name}")
        if not isinstance(values[name], str):
            raise ValueError(f"{where}: {name} is {shown(values[name])}, no text")
    return tuple(values[name] for name in names)


BENCHMARKS = {
    "geneval": Benchmark(
        "geneval",
        "draw",
        553,
        4,
        "af10a9b8f4f1fc0741fa8e3a1d1f4e16c4f8001566be8dcd5acfe2a3838f041c",
        "b070252c16f44faf6cc1cac7a21ad6663357690a3d93110d0f2cb80a7dee87f1",
        geneval_items,
    ),
    "dpg": Benchmark(
        "dpg",
        "draw",
        1065,
        4,
        "e929c304b2f6eb06f3b2cc652ad1dbe3a7f7d6521fd0a0a4bfb24293bb3a8fba",
        "302444b1cab817feb9a998f58db098f7c1f65adba9e38609551ddb9d57143925",
        dpg_items,
    ),
    "imgedit": Benchmark(
        "imgedit",
        "edit",
        737,
        1,
        "023b37ce975b659c8244fbfbf80f8e21769945dbd78266cc3176bec4444257f8",
        "805d5898c6229c78e3d042c32fbd83722f66a4d3cfb0ab7ba124be7dcee993ec",
        imgedit_items,
    ),
}


def rewritten(items: Sequence[Item], path: Path) -> list[Item]:
    """The same items with other prompts: a .txt with a prompt per line, in order, or a .json {key: prompt}.

    Raises UserError unless there is one for each item.
    """
    if path.suffix not in (".txt", ".json"):
        raise UserError(f"{path}: its name ends in neither .txt nor .json: give prompts one a line, or by key")
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = from_json(text) if path.suffix == ".json" else text.removesuffix("\n").split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)}): give a .txt or .json of prompts") from None
    if isinstance(found, dict):
        strange = next((key for key in found if key not in {item.key for item in items}), None)
        if strange is not None:
            raise UserError(f"{path}: {shown(strange)} is the key of no item: take it out")
        absent = [item.key for item in items if item.key not in found]
        if absent:
            raise UserError(f"{path}: has {len(found)} prompts and none for {absent[:3]}: {len(items)} keys are needed")
        listed = [(f"prompt {item.key}", found[item.key]) for item in items]
    elif isinstance(found, list):
        place = "line" if path.suffix == ".txt" else "prompt"
        listed = [(f"{place} {number}", value) for number, value in enumerate(found, 1)]
    else:
        raise UserError(f"{path}: holds neither a list nor an object of prompts: give one of them")
    for place, value in listed:
        if not isinstance(value, str):
            raise UserError(f"{path}: {place}: {shown(value)} is no text: write the prompt")
        if not value.strip():
            raise UserError(f"{path}: {place} is empty: give a prompt for every item")
    if len(listed) != len(items):
        raise UserError(f"{path}: has {len(listed)} prompts, {len(items)} are needed: give one for each item, in order")
    changed = [replace(item, prompt=value.strip()) for item, (_, value) in zip(items, listed, strict=True)]
    for item in changed:
        check_prompt(item, path, "write it as UTF-8")
    return changed


def select(items: Sequence[Item], per_kind: int) -> list[Item]:
    """The first `per_kind` items of each kind, in order, with their official numbers; 0 takes all."""
    seen: Counter[str] = Counter()
    chosen = []
    for item in items:
        seen[item.kind] += 1
        if not per_kind or seen[item.kind] <= per_kind:
            chosen.append(item)
    return chosen


def name_prompts(benchmark: Benchmark, items: Sequence[Item]) -> str:
    """Kind of prompts: "official", "rewritten" where only the prompts differ from the official items, or "other"."""
    if digest(items) == benchmark.official:
        return "official"
    return "rewritten" if digest(items, prompts=False) == benchmark.frames else "other"


def digest(items: Sequence[Item], prompts: bool = True) -> str:
    """SHA-256 over all items in order, for any file format."""
    listed = [[item.key, item.frame, *([item.prompt.strip()] if prompts else [])] for item in items]
    text = json.dumps(listed, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _letters(key: str) -> str:
    found = re.match(r"[A-Za-z]*", key)
    return found[0] if found else ""


def _safe(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _reason(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) else f"{error.__class__.__name__}: {error}"
