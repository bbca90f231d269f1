"""Initial weights of a Uni-X model from a Hugging Face folder: its weights, copies for the vision branch, and new rows.

Text branches and shared layers are the folder's layers. The vision branch of a separated layer is a copy of the text one, or
random. Embedding and LM head get a row for each picture code: the mean of the text rows plus noise, or random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import MODEL_TYPES, ModelConfig
from model.hf_source import HuggingFaceFolder
from model.initialise import generator_of, initialise
from model.weight_names import stack, training_names
from pretrain.system.errors import UserError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NOISE = 0.1  # noise of new rows, in standard deviations of the old ones, column by column
UNUSED = ("rotary_emb.inv_freq",)  # buffers of older transformers: computed from rope_theta


@dataclass(frozen=True)
class NewWeights:
    """How weights are made that the folder lacks."""

    vision: str = "copy"  # copy: of the text branch; random: by the seed and the weight's name
    rows: str = "mean"  # mean: of the text rows, plus noise; random
    seed: int = 0
    dtype: torch.dtype | None = None  # None: as stored


def starting_weights(
    source: HuggingFaceFolder, config: ModelConfig, new: NewWeights
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield (training name, function that makes the weight) of every weight, one in memory at a time.

    Raises UserError, before the first is made, when the folder lacks a weight, or has one that would not be used.
    """
    plan = {name: _parts(source, config, name, parts) for name, parts in training_names(config).items()}
    _check_complete(source, config, plan)
    dtype = _dtype(source, plan, new.dtype)
    for name, parts in plan.items():
        yield name, functools.partial(_make_in, dtype, source, config, new, name, parts)


def _parts(source: HuggingFaceFolder, config: ModelConfig, name: str, parts: list[str]) -> list[str]:
    """Names in the folder for a weight: its own, or those of the text branch where there is no vision branch."""
    if ".vision." in name and not source.is_uni_x:
        return [part.replace("model.vision_layers.", "model.layers.") for part in parts]
    return parts


def _check_complete(source: HuggingFaceFolder, config: ModelConfig, plan: dict[str, list[str]]) -> None:
    needed = {part for parts in plan.values() for part in parts}
    missing = sorted(needed - source.files.keys())
    if missing:
        raise UserError(
            f"{source.folder}: lacks {missing[0]} ({len(missing)} weights in all): {_why(source, config, missing[0])}"
        )
    unused = sorted(name for name in source.files.keys() - needed if not name.endswith(UNUSED))
    if unused == [HEAD] and config.tie_word_embeddings:
        if not torch.equal(source.tensor(HEAD), source.tensor(EMBEDDING)):
            raise UserError(f"{source.folder}: tie_word_embeddings is true, but {HEAD} differs from the embedding")
        unused = []
    if unused:
        why = _why(source, config, unused[0])
        raise UserError(
            f"{source.folder}: {unused[0]} has no place in this model ({len(unused)} weights in all): {why}"
        )


SWITCHED = {
    ("q_proj.bias", "k_proj.bias", "v_proj.bias"): "attention_bias",
    ("q_norm.weight", "k_norm.weight"): "qk_norm",
    (HEAD,): "tie_word_embeddings",
}
"""Endings of weights that a model has or not -> the setting that says so."""


def _why(source: HuggingFaceFolder, config: ModelConfig, name: str) -> str:
    """What says that a weight is needed, or has no place: a setting and where it is from."""
    setting = next((setting for endings, setting in SWITCHED.items() if name.endswith(endings)), "")
    if not setting:
        return "are config.json and the weights of one model?"
    kind = source.values["model_type"]
    of_folder = kind in MODEL_TYPES or setting == "tie_word_embeddings" and setting in source.values
    where = "config.json" if of_folder else f"the entry {kind!r} of model/families.py"
    return f"{setting} is {getattr(config, setting)} in {where}"


def _dtype(source: HuggingFaceFolder, plan: dict[str, list[str]], dtype: torch.dtype | None) -> torch.dtype:
    """`dtype`, or that of all weights. Raises UserError when they differ, or for a quantized type."""
    found = {source.described(part)[1]: part for parts in plan.values() for part in parts}
    known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    for stored in sorted(found.keys() - known.keys()):  # quantized weights need their scales
        raise UserError(
            f"{source.folder}: {found[stored]} is stored as {stored}: {', '.join(known)} can be read: save it in bf16 first"
        )
    if dtype is None and len(found) > 1:
        raise UserError(f"{source.folder}: weights are stored as {sorted(found)}: say which to keep with --dtype")
    return dtype or known[next(iter(found))]


def _make_in(dtype: torch.dtype, *what) -> Tensor:
    return _make(*what).to(dtype)


def _make(source: HuggingFaceFolder, config: ModelConfig, new: NewWeights, name: str, parts: list[str]) -> Tensor:
    tensors = [source.tensor(part) for part in parts]
    for part, tensor in zip(parts, tensors):
        if not tensor.isfinite().all():
            raise UserError(f"{source.files[part]}: {part} holds numbers that are not finite: download it again")
    if parts[0] in (EMBEDDING, HEAD):
        return grown(tensors[0], config, new, name, source)
    for part, tensor in zip(parts, tensors):
        shape = _shape(config, part)
        if tuple(tensor.shape) != shape:
            raise UserError(f"{source.folder}: {part} is {list(tensor.shape)}, its config.json makes it {list(shape)}")
    made = stack(config, name, tensors) if len(tensors) > 1 else tensors[0]
    if ".vision." in name and not source.is_uni_x and new.vision == "random":
        made = torch.empty(made.shape)
        initialise(config, [(name, made)], new.seed)
    return made


def _shape(config: ModelConfig, part: str) -> tuple[int, ...]:
    """Shape of a weight of the Hugging Face model, from the configuration."""
    heads, groups = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    hidden, ffn = config.hidden_size, config.intermediate_size
    if part.endswith(("q_norm.weight", "k_norm.weight")):
        return (config.head_dim,)
    if part.endswith("norm.weight"):
        return (hidden,)
    rows = {
        "q_proj": heads,
        "k_proj": groups,
        "v_proj": groups,
        "o_proj": hidden,
        "gate_proj": ffn,
        "up_proj": ffn,
        "down_proj": hidden,
    }
    columns = {"o_proj": heads, "down_proj": ffn}
    kind = part.split(".")[-2]
    return (rows[kind],) if part.endswith("bias") else (rows[kind], columns.get(kind, hidden))


def grown(old: Tensor, config: ModelConfig, new: NewWeights, name: str, source: HuggingFaceFolder) -> Tensor:
    """Embedding or LM head [rows, h] extended to the vocabulary: text rows as they are, new rows for image tokens.

    A Uni-X folder has its code rows; only rows that round the number up are new there.
    """
    stored = HEAD if name.startswith("output_layer") else EMBEDDING
    first = len(old) if source.is_uni_x else min(config.image_token_offset, len(old))
    if tuple(old.shape) != (source.values["vocab_size"], config.hidden_size):
        wanted = [source.values["vocab_size"], config.hidden_size]
        raise UserError(f"{source.folder}: {stored} is {list(old.shape)}, its config.json makes it {wanted}")
    whole = torch.empty(config.vocab_size, config.hidden_size, dtype=old.dtype)
    whole[:first] = old[:first]
    rows = torch.empty(config.vocab_size - first, config.hidden_size)
    if new.rows == "random":
        initialise(config, [(f"{name} of codes", rows)], new.seed)
    elif len(rows):
        text = old[:first].float()
        rows.normal_(0.0, NOISE, generator=generator_of(new.seed, f"{name} of codes"))
        rows.mul_(text.std(0)).add_(text.mean(0))
    whole[first:] = rows
    return whole
