"""Loading of a training checkpoint for measurements.

The whole training model in this process, and rows of any code shards for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig
from model.prompts import PromptTemplates
from pretrain.system.errors import UserError

if TYPE_CHECKING:
    from tokenization.shard_cache import Cache


@dataclass(frozen=True)
class Opened:
    """A verified checkpoint. `model` is a UniXTrainingModel in evaluation mode; `tokenizer` a tokenizers.Tokenizer."""

    folder: Path
    state: dict
    config: ModelConfig
    templates: PromptTemplates
    model: Any
    tokenizer: Any
    encode: Any  # text -> ids, none of them a control token

    @property
    def vocabulary(self):
        """The model's vocabulary, under the name that exports use."""
        return self.config.vocabulary

    def markup(self, text: str) -> list[int]:
        """Token ids of turn markup, which are control tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def open_checkpoint(path: Path, threads: int = 0) -> Opened:
    """Open a run folder (its newest good checkpoint) or a checkpoint of any layout. Raises UserError.

    With torchrun every process holds the whole model. `runtime.install` must have been called.
    """
    import torch
    from tokenizers import Tokenizer

    from model.hf.text_uni_x import TextEncoder
    from model.layer_specs import transformer_config
    from model.uni_x import UniXTrainingModel
    from pretrain import checkpoint, runtime
    from pretrain.engines.rank_state import weight_boxes
    from pretrain.sharded_files import read_boxes

    if threads:
        torch.set_num_threads(threads)
    folder = checkpoint.find(path)
    for name in ("model.json", "unix_prompts.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: has no {name}: give a checkpoint of pretrain/train.py")
    config = checkpoint.read_model(folder)
    prompts = folder / "unix_prompts.json"
    templates = PromptTemplates.from_json(prompts.read_text(encoding="utf-8"), str(prompts))
    runtime.start_distributed(0)
    model = UniXTrainingModel(config, transformer_config(config)).to(torch.cuda.current_device()).eval()
    read_boxes(folder, weight_boxes([model]))
    return Opened(
        folder,
        checkpoint.read_state(folder),
        config,
        templates,
        model,
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        TextEncoder((folder / "tokenizer.json").read_text(encoding="utf-8")),
    )


def check_shards(opened: Opened, folders: Sequence[Path | str], cache: Cache | None = None) -> None:
    """Check that shards, in folders or at URLs, were made with the checkpoint's tokenizers. Raises UserError."""
    from pretrain.setup import check_shapes
    from tokenization.shards import open_dataset

    digest = hashlib.sha256((opened.folder / "tokenizer.json").read_bytes()).hexdigest()
    for folder in folders:
        manifest = open_dataset(folder, cache).manifest
        if manifest["tokenizer"]["sha256"] != digest:
            raise UserError(
                f"{folder}: was made with another text tokenizer than {opened.folder}: shard the data with its own"
            )
        if manifest["vq"]["fingerprint"] != opened.templates.vq_fingerprint:
            raise UserError(
                f"{folder}: was made with another image tokenizer than {opened.folder}: shard the data with its own"
            )
        check_shapes(folder, manifest, opened.templates)


def planned_rows(
    opened: Opened, folders: list[Path], sequence_length: int, text_to_image: float, seed: int = 0
) -> Iterator[Any]:
    """Rows of one epoch over the documents of `folders`, as in training, without prompt dropout or code noise.

    text_to_image: share of captioned pictures that are drawn, the others are captioned.
    """
    from pretrain.loader import RowDataset, RowSource
    from pretrain.rows import RowSize
    from pretrain.tasks import TaskShares, tokenize_prompts

    check_shards(opened, folders)
    tokenized = tokenize_prompts(opened.encode, opened.config.vocabulary, opened.templates, opened.markup)
    shares = TaskShares(text_to_image, unconditional=0.0, train_on_prompts=False)
    sources = [RowSource(folder) for folder in folders]
    rows = RowDataset(sources, tokenized, shares, RowSize(sequence_length, multiple=8), seed)
    index = 0
    while rows.plan.epoch_of(index) == 0:
        yield rows[index]
        index += 1
