"""Check that the inputs of a configuration exist, before torch is imported."""

from __future__ import annotations

from pathlib import Path

from pretrain.config import DataSection
from pretrain.system.errors import UserError


def check_inputs(data: DataSection, init_from: str = "") -> None:
    """Raises UserError for inputs that are missing or unreadable: datasets, tokenizers, prompt templates, a checkpoint
    to start from.

    Reads manifests and other small files only. What lies at a URL is not asked for: `pretrain.data` does, once. A run of
    several processes does not call this: on one node alone something may be absent, which only that node's process could say.
    """
    from pretrain.prompt_templates import read_prompt_templates
    from tokenization.shards import open_dataset
    from tokenization.vq import find_folder

    for path in [*(source.path for source in data.sources), data.heldout]:
        if path and "://" not in str(path):
            open_dataset(path)
    tokenizer_file(data.tokenizer)
    read_prompt_templates(data.prompt_templates)
    if data.vq:
        find_folder(data.vq)
    if init_from and not holds_checkpoint(Path(init_from)):
        raise UserError(
            f"run.init_from: {init_from} holds no checkpoint: give a run folder or one of its checkpoints/step_*"
        )


def holds_checkpoint(folder: Path) -> bool:
    """Whether a path looks like a checkpoint folder or a run with one; it is verified later."""
    return (
        (folder / "manifest.json").is_file()
        or any((folder / "checkpoints").glob("step_*"))
        or folder.name.startswith("step_")
        and folder.is_dir()
    )


def tokenizer_file(folder: str | Path) -> Path:
    """The tokenizer.json of `data.tokenizer`. Raises UserError when it is missing."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: data.tokenizer must be a folder with a tokenizer.json")
    return path
