"""File reading of an image tokenizer's folder; each error is one line with the file's name."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.hf_keys import WITHOUT_EFFECT
from pretrain.system.errors import UserError

if TYPE_CHECKING:
    import torch

NAMES_IN_A_MESSAGE = 4
LONGEST_REASON = 160


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError if it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({in_one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def check_settings(config: dict[str, Any], known: Collection[str], source: Path) -> None:
    """Raises UserError for a setting that the library's class lacks and would ignore, unless it is known to have no
    effect.

    Keys with an underscore are the library's notes.
    """
    for key, value in config.items():
        if not (key in known or key in WITHOUT_EFFECT or key.startswith("_") or value is None):
            raise UserError(
                f"{source}: {key} ({repr(value)[:60]}) is not known, and may change the codes: remove it if it does not"
            )


def read_safetensors(path: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, torch.Tensor]:
    """Tensors whose name begins with one of `prefixes`, by the rest of the name. Raises UserError for a damaged
    file."""
    from safetensors import SafetensorError, safe_open

    state = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
                if prefix is not None:
                    state[key.removeprefix(prefix)] = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read as safetensors ({in_one_line(error)}); copy or download it again"
        ) from error
    return state


def load_exactly(model: torch.nn.Module, state: dict[str, torch.Tensor], source: Path) -> None:
    """Copy `state` into `model`. Raises UserError with the tensors of `source` that are missing, unknown or of another
    shape."""
    own = model.state_dict()
    misshapen = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    complaints = [
        ("missing", sorted(own.keys() - state.keys())),
        ("unexpected", sorted(state.keys() - own.keys())),
        ("of another shape", misshapen),
    ]
    found = [f"{len(keys)} {what}: {shortened(keys)}" for what, keys in complaints if keys]
    if found:
        raise UserError(f"{source}: its tensors are not those that the config asks for; {'; '.join(found)}")
    model.load_state_dict(state)


def in_one_line(error: Exception) -> str:
    """A library's error message, shortened to one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


def shortened(names: list[str]) -> str:
    """The first few names, and the number of the others."""
    more = len(names) - NAMES_IN_A_MESSAGE
    return ", ".join(names[:NAMES_IN_A_MESSAGE]) + (f" and {more} more" if more > 0 else "")
