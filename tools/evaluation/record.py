"""Result file of an evaluation: JSON with what was measured, on which data, how, or why there is no number.

The same evaluation of the same model on one machine writes the same bytes, so two files can be compared as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pretrain.checkpoint import read_state
from pretrain.system.errors import RunFailed, UserError
from tokenization.files import write_atomically

KIND, VERSION = "uni-x evaluation", 1
LIBRARIES = ("torch", "transformers", "diffusers", "tokenizers", "numpy", "pillow")
ROOT = Path(__file__).resolve().parents[2]


def require_all(what: str, expected: Sequence[str], done: Collection[str], remedy: str) -> None:
    """Raises UserError, with what is missing, unless everything is done: no average of a part."""
    done = set(done)
    missing = [name for name in expected if name not in done]
    if missing:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        count = f"{len(missing)} of {len(expected)}"
        raise UserError(f"{what}: {count} are missing ({named}): no average of a part: {remedy}")


def make_record(
    task: str,
    expected: int,
    done: int,
    *,
    model: dict[str, Any],
    data: dict[str, Any],
    settings: dict[str, Any],
    scores: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A result. `data` describes the data, with hashes; `settings` are seeds, dtype, guidance, prompt template.

    `scores` are numbers by name, and only there when all expected items are done. Raises ValueError otherwise.
    """
    if scores is not None and done != expected:
        raise ValueError(f"{task}: scores of {done} of {expected} items")
    found = {
        "kind": KIND,
        "version": VERSION,
        "task": task,
        "items": {"expected": expected, "done": done},
        "complete": done == expected,
        "model": model,
        "data": data,
        "settings": settings,
        **more,
        "versions": versions(),
    }
    return found if scores is None else {**found, "scores": scores}


def write_record(folder: Path, record: dict[str, Any], name: str = "") -> Path:
    """Write `folder`/<task>.json atomically -> its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name or record['task']}.json"
    write_atomically(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def read_content(path: Path, remedy: str) -> Any:
    """Content of a JSON file. Raises UserError with a remedy for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}): {remedy}") from None


def read_record(path: Path) -> dict[str, Any]:
    """Read a result of `write_record`. Raises UserError."""
    found = read_content(path, "give a file that tools/evaluate.py wrote")
    if not is_record(found):
        raise UserError(f"{path}: is no result of tools/evaluate.py: give a file that it wrote")
    return found


def replaced(path: Path, record: dict[str, Any]) -> str:
    """A line on the result that `record` replaces at `path`, with its scores; empty without one of other model, data or
    settings. Raises UserError for a file that is no result."""
    if not path.exists():
        return ""
    there, now = read_record(path), json.loads(json.dumps(record))
    differences = [
        f"{key} is {there[part].get(key)} there, {now[part].get(key)} now"
        for part in ("model", "data", "settings")
        for key in {**there[part], **now[part]}
        if there[part].get(key) != now[part].get(key)
    ]
    if not differences:
        return ""
    scores = ", ".join(f"{name} {value:.6g}" for name, value in there.get("scores", {}).items())
    return f"{path}: replaces another result ({'; '.join(differences)}): {scores or 'no scores'}"


def check_finite(what: str, scores: Mapping[str, float]) -> None:
    """Raises RunFailed for a score that is no finite number: JSON has none of these, and no table could compare it."""
    for name, value in scores.items():
        if not math.isfinite(value):
            raise RunFailed(f"{what}: {name} is {value}, no finite number: there is nothing to compare")


def is_record(content: Any) -> bool:
    """Whether a file's content is a result of this tool."""
    return isinstance(content, dict) and content.get("kind") == KIND


def conditions(record: dict[str, Any]) -> str:
    """Short description of a result's settings, for a table."""
    settings, prompts = record["settings"], record["data"].get("prompts")
    parts = [f"{prompts} prompts {record['data']['digest'][:8]}"] if prompts else []
    named = ("guidance", "image_guidance", "temperature", "seed", "dtype", "judge", "harness")
    parts += [f"{name.replace('_', ' ')} {settings[name]}" for name in named if name in settings]
    return ", ".join([*parts, f"{record['items']['done']} of {record['items']['expected']} items"])


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of Python, of relevant libraries, and of this repository ("+" marks a commit with changes)."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return {**found, "commit": _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # a copy without history, or a machine without git
        return ""
    return done.stdout.strip()


def export_identity(folder: Path) -> dict[str, Any]:
    """Identity of the measured export."""
    from tools.generation.batches import fingerprint

    return {"from": "export", "fingerprint": fingerprint(folder)}


def checkpoint_identity(folder: Path) -> dict[str, Any]:
    """Identity of the measured checkpoint: its manifest has the checksums of all its files."""
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    return {"from": "checkpoint", "fingerprint": digest[:16], "step": read_state(folder).get("step", 0)}


def machine(device: str) -> dict[str, Any]:
    """Machine properties that rounding depends on: the processor, and on a CPU the number of threads."""
    import torch

    if device == "cuda":
        return {"device": torch.cuda.get_device_name()}
    return {"device": "cpu", "threads": torch.get_num_threads()}
