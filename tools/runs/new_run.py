"""Configuration of a new run, from its shards and its base model."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.system.errors import UserError

if TYPE_CHECKING:
    from tokenization.shards import CodeDataset

SIZES: dict[str, dict[str, Any]] = {  # of models from nothing; all are ours
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "shallow": 1,
        "deep": 1,
        "lr": 3e-3,
    },
    "small": {
        "hidden_size": 384,
        "intermediate_size": 1152,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "shallow": 2,
        "deep": 1,
        "lr": 1e-3,
    },
    "medium": {
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "shallow": 3,
        "deep": 2,
        "lr": 6e-4,
    },
}
TOKENS_FOR = {"tiny": 0, "small": 10_000_000, "medium": 300_000_000}
"""Tokens of a corpus from which on a size is taken."""
OF_A_BASE = {"lr": 5e-5, "rows": 10240}
"""Peak rate and longest rows of a run that goes on from a language model, as in pretrain_3b.yaml."""
FEW = 100_000  # with fewer pictures a model memorizes them unless their codes have noise
AROUND = 64  # tokens beside a picture's codes and its text: marks and words of the prompt
PROMPTS = 8
COMMENTS = {  # comments of keys that have none in pretrain/config.py
    "hidden_size": "width of the residual stream",
    "intermediate_size": "width of the feed-forward",
    "num_hidden_layers": "layers in all",
    "num_attention_heads": "query heads",
    "num_key_value_heads": "key and value heads",
    "head_dim": "width of a head",
    "tie_word_embeddings": "whether the embedding is the head too",
    "rope_theta": "base of the positions' wavelengths",
    "rms_norm_eps": "of the norms",
    "initializer_range": "standard deviation of random first weights",
    "lr": "peak",
    "final_lr": "at the last step",
    "warmup_steps": "linear, from 0",
    "weight_decay": "of AdamW; not on norms and biases",
    "every": "steps",
    "sample_prompts": "first texts of some documents",
    "sources": "folders of code shards, relative to where the command runs",
}
MOST_SAMPLES = 10  # sheets of sample pictures, checkpoints and measurements in a run


def check_alike(paths: list[Path], datasets: list[CodeDataset]) -> None:
    """Raises UserError for datasets with another image or text tokenizer than the first."""
    for path, dataset in zip(paths, datasets, strict=True):
        for section, key, what in (("vq", "fingerprint", "image tokenizer"), ("tokenizer", "sha256", "text tokenizer")):
            first, own = (each.manifest[section] for each in (datasets[0], dataset))
            if first[key] != own[key]:
                raise UserError(
                    f"{path}: was made with another {what} ({own['name']!r}) than {paths[0]} ({first['name']!r}): make it again with that one"
                )


def warnings(vq: str, datasets: list[CodeDataset], heldout: CodeDataset | None) -> Iterator[str]:
    """Warnings that training would print at its start: another image tokenizer, held-out data in the training data."""
    from tokenization.vq import find_folder, read_preprocess

    called, made_with = read_preprocess(find_folder(vq))[0], datasets[0].manifest["vq"].get("name")
    if called != made_with:
        yield (
            f"--vq is called {called!r}, and the shards were made with {made_with!r}: if that is another image tokenizer, "
            "nothing can be drawn or exported with it"
        )
    if heldout and heldout.manifest["fingerprint"] in {dataset.manifest["fingerprint"] for dataset in datasets}:
        yield "--heldout is trained on too: its losses say nothing of what was not seen"


def what_there_is(datasets: list[CodeDataset]) -> dict[str, int]:
    """Documents, images and tokens of all datasets, and the tokens of the longest document that must not be split."""
    counts = {
        key: sum(dataset.manifest["counts"][key] for dataset in datasets)
        for key in ("documents", "pictures", "text_tokens", "image_tokens")
    }
    counts["tokens"] = counts["text_tokens"] + counts["image_tokens"] + AROUND // 2 * counts["documents"]
    counts["longest"] = max(longest_of(dataset) for dataset in datasets)
    if not counts["documents"]:
        raise UserError("the shards hold no documents")
    return counts


def longest_of(dataset: CodeDataset) -> int:
    """Tokens of the longest captioned image with the longest of its texts, or of the largest image of another
    document."""
    import numpy as np

    from tokenization.readers.document import CAPTION_PAIR, KINDS

    index, longest = dataset.lengths, 0
    for low in range(0, len(index), 1 << 20):
        offsets = np.asarray(index.offsets[low : low + (1 << 20) + 1])
        lengths, is_picture = (np.asarray(array[offsets[0] : offsets[-1]]) for array in (index.lengths, index.layout))
        if not len(lengths):
            continue
        is_picture = is_picture.astype(np.uint8) & 1 == 1
        starts = (offsets[:-1] - offsets[0])[np.diff(offsets) > 0]
        codes = np.maximum.reduceat(np.where(is_picture, lengths, 0), starts)
        texts = np.maximum.reduceat(np.where(is_picture, 0, lengths), starts)
        pairs = np.asarray(index.kinds[low : low + (1 << 20)])[np.diff(offsets) > 0] == KINDS.index(CAPTION_PAIR)
        longest = max(longest, int((codes + np.where(pairs, texts, 0)).max()))
    return longest


def prompts_of(dataset: CodeDataset) -> list[str]:
    """First texts of some documents with an image, spread over the dataset, without duplicates."""
    found: dict[str, None] = {}
    for number in range(0, len(dataset), max(1, len(dataset) // (4 * PROMPTS))):
        document = dataset[number]
        if len(document["codes"]) and document["texts"] and (text := " ".join(document["texts"][0].split())):
            found.setdefault(text[:200])
        if len(found) == PROMPTS:
            break
    return list(found)


def settings(arguments: argparse.Namespace, found: dict[str, int], prompts: list[str]) -> dict[str, dict[str, Any]]:
    """Sections of the configuration."""
    size = arguments.size
    if size == "auto":
        size = [name for name, least in TOKENS_FOR.items() if found["tokens"] >= least][-1]
    few = found["pictures"] <= FEW
    needed = found["longest"] + AROUND
    most = OF_A_BASE["rows"] if arguments.init_from else 4096
    sequence_length = max(-(-needed // 64) * 64, min(most, max(1024, 4 * (1 << (needed - 1).bit_length()))))
    # a few hundred updates per epoch at most, and enough rows per batch for all kinds of documents
    rows = max(1, min(64, round(found["tokens"] / sequence_length / 300)))
    epochs = arguments.epochs or (20 if few else 2)
    steps = max(10, round(epochs * found["tokens"] / (rows * sequence_length)))
    often = max(1, steps // MOST_SAMPLES)
    lr = OF_A_BASE["lr"] if arguments.init_from else SIZES[size]["lr"]
    heldout = {"heldout": str(arguments.heldout)} if arguments.heldout else {}
    return {
        "run": {
            "folder": str(arguments.folder),
            "steps": steps,
            "precision": "bf16" if arguments.init_from else "fp32",
            **({"init_from": str(arguments.init_from)} if arguments.init_from else {}),
        },
        "model": base_section(arguments.init_from) if arguments.init_from else section_from_nothing(size, needed),
        "data": {
            "tokenizer": str(arguments.tokenizer),
            "vq": arguments.vq,
            "sources": [{"path": str(path)} for path in arguments.shards],
            **heldout,
            "sequence_length": sequence_length,
            "global_batch_size": rows,
            "text_to_image": 0.8,
            "unconditional": 0.1,
            "code_noise": 0.5 if few else 0.0,
        },
        "optim": {
            "lr": lr,
            "final_lr": lr / 30,
            "warmup_steps": max(1, steps // 30),
            "decay": "cosine",
            "weight_decay": 0.1,
        },
        "checkpoint": {"every": often, "keep": 2},
        "log": {
            "every": max(1, min(100, steps // 50)),
            **({"heldout_every": often} if heldout else {}),
            "samples_every": often if prompts else 0,
            "sample_prompts": prompts,
        },
    }


def section_from_nothing(size: str, needed: int) -> dict[str, Any]:
    """Model section of a size, for training from scratch."""
    values = {key: value for key, value in SIZES[size].items() if key != "lr"}
    heads = values["num_attention_heads"]
    width = values["hidden_size"] // heads
    return values | {
        "num_key_value_heads": heads // 2,
        "head_dim": width,
        "flavour": "qwen3",
        "tie_word_embeddings": False,
        "rope_theta": 10_000.0 if needed < 2048 else 1_000_000.0,
        "initializer_range": round(values["hidden_size"] ** -0.5 * 0.7, 3),
    }


def base_section(checkpoint: Path) -> dict[str, Any]:
    """Model section that fits the weights of a checkpoint. Raises UserError."""
    import yaml

    from model.tokenizer_file import read_tokenizer
    from pretrain.checkpoint import read_model
    from pretrain.inputs import holds_checkpoint
    from pretrain.model_section import section_yaml

    if not holds_checkpoint(checkpoint):
        raise UserError(f"--init-from: {checkpoint} holds no checkpoint: make one with tools/convert_from_hf.py")
    found = (
        checkpoint
        if (checkpoint / "model.json").is_file()
        else max((checkpoint / "checkpoints").glob("step_*"), default=checkpoint)
    )
    own = found / "tokenizer.json"
    tokenizer = read_tokenizer(own)[0] if own.is_file() else None
    try:
        text = section_yaml(read_model(found), tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{found / 'model.json'}: cannot be read ({error.__class__.__name__}): make it again with tools/convert_from_hf.py"
        ) from None
    section = yaml.safe_load(text)
    if not section:
        raise UserError(f"{found / 'model.json'}: {text.splitlines()[-1].lstrip('# ')}")
    return section["model"]


def commented(values: dict[str, dict[str, Any]], found: dict[str, int]) -> str:
    """Sections as YAML; each key has its comment from pretrain/config.py."""
    import yaml

    from pretrain import config

    lines = [
        f"# Written by tools/new_run.py for {found['documents']:,} documents with {found['pictures']:,} pictures, {found['tokens']:,} tokens in all.",
        "# Its numbers are a beginning. Keys that are not here have the defaults that docs/training.md and pretrain/config.py tell.",
    ]
    for section, keys in values.items():
        comments = COMMENTS | comments_of(getattr(config, f"{section.capitalize()}Section"))
        lines += ["", f"{section}:"]
        for key, value in keys.items():
            text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=10_000).rstrip().splitlines()
            text[0] = f"{text[0]:<34}  # {comments[key]}"
            lines += [f"  {line}" for line in text]
    return "\n".join(lines) + "\n"


def comments_of(section: type) -> dict[str, str]:
    """Comments of a section's keys in its source."""
    found = re.findall(r"^    (\w+): [^\n]*?  # (.*)$", inspect.getsource(section), re.MULTILINE)
    return dict(found)
