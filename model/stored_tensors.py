"""Tensor files of a Hugging Face folder: those that transformers would load, and no others.

transformers 4.57.6 and 5.24.0 load model.safetensors where it is, and else the files that the index names, each whole. A
folder with both may hold two models (a stale index, or a stale file), so it is refused unless the two agree.
"""

from __future__ import annotations

import json
from pathlib import Path

from pretrain.system.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def stored_tensors_of(folder: Path) -> dict[str, Path]:
    """Stored name -> file of every tensor; empty without a weight file.

    Raises UserError for files that are missing, damaged or do not agree with their index.
    """
    single, index = folder / SINGLE, folder / INDEX
    places = _places(index) if index.is_file() else {}
    if single.is_file() and set(places.values()) - {SINGLE}:
        raise UserError(
            f"{folder}: holds {SINGLE} and an {INDEX} of other files; transformers reads the former: remove the stale one"
        )
    found: dict[str, Path] = {}
    for place in [SINGLE] if single.is_file() else sorted(set(places.values())):
        path = folder / place
        if not path.is_file():
            raise UserError(f"{path} is missing, {index} names it: download it again")
        for name in _names(path):
            if name in found:
                raise UserError(f"{path}: {name} is in {found[name].name}, too: remove the stale file")
            found[name] = path
    for name, place in places.items():
        if name not in found:
            raise UserError(f"{index}: says that {place} holds {name}, which it does not: download both again")
    if places and (more := sorted(found.keys() - places.keys())):
        raise UserError(f"{found[more[0]]}: holds {more[0]}, which {index} does not name: download both again")
    return found


def _places(index: Path) -> dict[str, str]:
    """Name -> file name, from an index."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        elsewhere = next((place for place in places.values() if Path(place).name != place), None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{index}: cannot be read as an index ({error.__class__.__name__}): download it again"
        ) from None
    if elsewhere is not None:
        raise UserError(f"{index}: names {elsewhere!r}, which is not in its folder: move all files into one folder")
    return places


def _names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}): download it again") from None
