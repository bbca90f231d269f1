"""Files of one folder that belong together: saved datasets of Hugging Face, numbered files, and what img2dataset writes."""

from __future__ import annotations

import re
from pathlib import Path

from pretrain.system.errors import UserError
from pretrain.system.strict_json import from_json
from tokenization import storage
from tokenization.readers import pairs

STATE, SPLITS_FILE = "state.json", "dataset_dict.json"
OF_DATASETS = frozenset([STATE, SPLITS_FILE, "dataset_info.json"])
"""What `datasets` writes beside its data: it says nothing that is learned."""
NUMBERED = re.compile(r"(?P<name>.*)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?:-[0-9a-f]{8,})?(?P<suffix>\.\w+)")
SPLITS = ("train", "test", "validation", "valid", "val", "dev")
STATS = re.compile(r"(\d+)_stats\.json")


HARMLESS = {"", ".md", ".yaml", ".yml", ".lock", ".log", ".html"}
"""Suffixes beside a corpus that say nothing of its documents, and are not told."""


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in lower case."""
    return Path(name).suffix.lower()


def unused_of(entries: list[storage.Entry]) -> str:
    """Number of unused files by suffix, in words."""
    counts: dict[str, int] = {}
    for entry in entries:
        suffix = suffix_of(entry.name)
        if suffix not in HARMLESS:
            counts[suffix] = counts.get(suffix, 0) + 1
    words = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: -item[1]))
    some = any(pairs.is_picture(entry.name) for entry in entries)
    return words + (
        " (a picture is used if a record names it, or a KEY.txt, .caption or .json of its name says what it is)"
        if some
        else ""
    )


def check_splits(path: str, entries: list[storage.Entry]) -> None:
    """Raises UserError for a saved DatasetDict: its splits are folders, and should not become one dataset; and for code
    shards."""
    if {"job.json", "files", "parts"} <= {entry.name for entry in entries}:
        raise UserError(
            f"{path}: is a dataset that shard_images.py made, not a corpus: give the corpus that it was made of"
        )
    if any(entry.name == SPLITS_FILE for entry in entries):
        folders = [entry.name for entry in entries if entry.is_folder]
        example = " ".join(f"{name}={path.rstrip('/')}/{name}" for name in folders[:3])
        raise UserError(f"{path}: is a dataset of several splits: name the ones to use, as --input {example}")


def of_dataset(path: str, entries: list[storage.Entry], arrows: list[storage.Entry]) -> list[storage.Entry]:
    """Of a saved dataset's .arrow files those that its state.json names: the others are caches of `map` and `filter`, with the
    same rows again. Raises UserError if one that it names is not there."""
    state = next((entry for entry in entries if entry.name == STATE), None)
    if state is None:
        return arrows
    try:
        with storage.opened(state.path) as file:
            named = [str(data["filename"]) for data in from_json(file.read())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state.path}: cannot be read ({error!r}): save the dataset again, or remove it") from error
    if lost := sorted(set(named) - {entry.name for entry in arrows}):
        raise UserError(
            f"{path}: {len(lost)} of the {len(named)} files that its {STATE} names are not there, as {lost[0]}: copy them too, or "
            "name the files to use"
        )
    return [entry for entry in arrows if entry.name in named]


def of_img2dataset(names: list[str]) -> set[str]:
    """Names of the tables and statistics that img2dataset writes beside NNNNN.tar, or beside the folder NNNNN: both say nothing
    more than these."""
    first = {name.partition("/")[0] for name in names}
    keys = {found[1] for name in names if (found := STATS.fullmatch(name))}
    keys = {key for key in keys if key in first or f"{key}.tar" in first}
    return {f"{key}.parquet" for key in keys} | {f"{key}_stats.json" for key in keys}


def note(names: list[str]) -> str:
    """What is odd about the names of a folder's files, in words: numbers that are not there, and splits that are mixed."""
    there: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if found := NUMBERED.fullmatch(name):
            there.setdefault((found["name"], found["count"], found["suffix"]), set()).add(int(found["number"]))
    words = [
        f"not there: {int(count) - len(numbers):,} of the {int(count):,} files {name}-*-of-{count}{suffix}"
        for (name, count, suffix), numbers in sorted(there.items())
        if len(numbers) < int(count)
    ]
    splits = [split for split in SPLITS if any(name.partition("-")[0].partition(".")[0] == split for name in names)]
    if len(splits) > 1:
        words.append(f"the splits {' and '.join(splits)} are read as one: name the files to use if that is not meant")
    return "; ".join(words)
