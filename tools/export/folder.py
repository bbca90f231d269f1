"""Loading of an exported Uni-X folder: the model, its text tokenizer, its image tokenizer and its prompt templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.config import MODEL_TYPES, ModelConfig
from model.hf_keys import check_keys
from model.prompts import Encode, PromptTemplates
from model.vocabulary import Vocabulary
from pretrain.system.errors import UserError
from pretrain.system.words import shown

PROMPTS_FILE, VQ_FOLDER = "unix_prompts.json", "vq"
NUMBERS = tuple(field.name for field in fields(ModelConfig) if field.type in ("int", "float"))
"""Keys of config.json that are numbers: torch takes another epsilon for null, in silence."""


@dataclass(frozen=True)
class Export:
    """A loaded export of `tools/convert_to_hf.py`: `model` is a UniXForCausalLM, `vq` a tokenization.vq.VQ."""

    folder: Path
    model: Any
    vq: Any
    encode: Encode  # never makes a control token
    markup: Encode  # for marks of turns, which are control tokens
    decode: Callable[[list[int]], str]  # leaves out special tokens
    templates: PromptTemplates
    vocabulary: Vocabulary


def check_export(folder: Path) -> None:
    """Raises UserError, in one line, if `folder` is not an exported Uni-X model. Reads small files only."""
    if not folder.is_dir():
        raise UserError(f"no model folder {folder}: give a folder that tools/convert_to_hf.py wrote")
    try:
        config = _parsed(folder / "config.json")
    except FileNotFoundError:
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{folder} is an adapter of peft, not a model: load it onto its model, then merge_and_unload() and "
                "save_pretrained (docs/fine-tuning.md)"
            ) from None
        raise UserError(f"{folder} has no config.json: give a folder that tools/convert_to_hf.py wrote") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{folder / 'config.json'} is of model_type {kind!r}, not {MODEL_TYPES[0]!r}: not a Uni-X model"
        )
    for name in NUMBERS:
        if isinstance(config.get(name, 1), bool) or not isinstance(config.get(name, 1), int | float):
            raise UserError(f"{folder / 'config.json'}: {name} is {config[name]!r}, no number: export the model again")
    check_keys({key: value for key, value in config.items() if key != "quantization_config"}, folder / "config.json")
    check_generation(folder / "generation_config.json")
    for name in (PROMPTS_FILE, VQ_FOLDER, "tokenizer.json"):
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}: export the model again with tools/convert_to_hf.py")


def check_generation(path: Path) -> None:
    """Raises UserError for a damaged generation_config.json: transformers takes its defaults for it, in silence.

    It may be absent, and its settings are of transformers' own generation: commands here are asked for theirs, and stop
    where tokenizer.json says.
    """
    if not path.exists():
        return
    found = _parsed(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is {shown(found)}, no object: export the model again")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = found.get(name)
        if ids is not None and any(type(one) is not int for one in (ids if isinstance(ids, list) else [ids])):
            raise UserError(f"{path}: {name} is {shown(ids)}, no token id: export the model again")


def _parsed(path: Path) -> Any:
    """Content of a JSON file. Raises FileNotFoundError, and UserError for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): export the model again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): export the model again") from None


def open_export(folder: Path, device: str = "cpu", dtype: str = "") -> Export:
    """Load everything in `folder` to `device`: float32 on a CPU, bfloat16 on a GPU, unless `dtype` is given. The image
    tokenizer stays float32.

    The model is this repository's class with the folder's weights, so no code of the folder is run. Raises UserError
    for whatever is missing, broken, or does not belong together.
    """
    check_export(folder)
    from pretrain.system.cpu_memory import keep_freed_memory
    from pretrain.system.light_imports import leave_torchvision_out

    keep_freed_memory()
    leave_torchvision_out()
    from tokenizers import Tokenizer

    from tokenization.text_tokenizer import load_text_tokenizer
    from tokenization.vq import load_vq

    path = folder / PROMPTS_FILE
    try:
        prompts = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): export the model again") from None
    templates = PromptTemplates.from_json(prompts, source=str(path))
    text = load_text_tokenizer(folder)
    vq = load_vq(str(folder / VQ_FOLDER), device=device)
    model = load_model(folder, device, dtype)
    check_vq(model.config.codebook_size, vq, templates, folder)
    vq.image_size = templates.grid[0] * vq.downsample  # exports of earlier releases have the tokenizer's own size there
    config = model.config
    controls = Tokenizer.from_file(str(folder / "tokenizer.json"))
    check_tokenizer(controls, config, folder)
    check_codes(controls, config, folder)
    vocabulary = Vocabulary(
        image_token_offset=config.image_token_offset,
        codebook_size=config.codebook_size,
        vision_start_id=config.vision_start_token_id,
        vision_end_id=config.vision_end_token_id,
        eos_id=config.eos_token_id,
    )
    return Export(
        folder=folder,
        model=model,
        vq=vq,
        markup=lambda string: controls.encode(string, add_special_tokens=False).ids,
        encode=lru_cache(maxsize=1024)(lambda string: tuple(text.encoder(string))),
        decode=lambda ids: controls.decode(ids, skip_special_tokens=True),
        templates=templates,
        vocabulary=vocabulary,
    )


def check_tokenizer(tokenizer, config, folder: Path) -> None:
    """Raises UserError if the text tokenizer of `folder` gives the picture's control tokens other ids than the model."""
    for name, expected in (
        ("<|vision_start|>", config.vision_start_token_id),
        ("<|vision_end|>", config.vision_end_token_id),
    ):
        found = tokenizer.token_to_id(name)
        if found != expected:
            has = f"gives {name} the id {found}" if found is not None else f"has no {name}"
            raise UserError(
                f"{folder / 'tokenizer.json'} {has}, config.json names {expected}: put the text tokenizer there that the "
                "model was trained with"
            )


def check_codes(tokenizer, config, folder: Path) -> None:
    """Raises UserError if texts and image codes of `folder` share ids. Added tokens are not counted: no text becomes one."""
    if (count := tokenizer.get_vocab_size(with_added_tokens=False)) > config.image_token_offset:
        raise UserError(
            f"{folder / 'tokenizer.json'} has {count:,} tokens of texts, and image codes begin at {config.image_token_offset:,} "
            "(image_token_offset in config.json): put config.json and the text tokenizer there that the model was trained with"
        )


def check_square(export: Export, command: str) -> None:
    """Raises UserError for a model of several shapes, which the command does not support."""
    if export.templates.shapes:
        raise UserError(
            f"{export.folder} draws pictures of {len(export.templates.shapes)} shapes, and {command} reads squares "
            "only: use tools/generate.py and tools/evaluate.py"
        )


def load_model(folder: Path, device: str, dtype: str = ""):
    """Load the UniXForCausalLM of `folder`, in evaluation mode. Raises UserError when weights are missing or do not
    fit."""
    import torch
    from safetensors import SafetensorError

    from pretrain.system.light_imports import import_transformers

    import_transformers()
    from model.hf.modeling_uni_x import UniXForCausalLM

    kind = getattr(torch, dtype or ("float32" if device == "cpu" else "bfloat16"))
    try:
        model, info = UniXForCausalLM.from_pretrained(folder, dtype=kind, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} cannot be loaded: {reason[:300]}: export the model again") from error
    except ImportError as error:  # of a quantized folder's tool
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} needs a package that is not installed: {reason[:300]}") from error
    wrong = {what: sorted(info[what]) for what in ("missing_keys", "unexpected_keys") if info[what]}
    if wrong:
        found = ", ".join(f"{len(names)} {what.replace('_', ' ')}, as {names[0]}" for what, names in wrong.items())
        raise UserError(f"{folder}: weights do not fit config.json: {found}: export the model again")
    return model.eval().to(device)


def check_vq(codebook_size: int, vq, templates: PromptTemplates, folder: Path) -> None:
    """Raises UserError if the image tokenizer of `folder` is not the one that the model was trained with."""
    if vq.codebook_size != codebook_size:
        raise UserError(
            f"{folder / VQ_FOLDER} has a codebook of {vq.codebook_size}, the model one of {codebook_size}: "
            "put the image tokenizer there that the model was trained with"
        )
    if templates.vq_fingerprint and vq.fingerprint != templates.vq_fingerprint:
        raise UserError(
            f"{folder / VQ_FOLDER} has fingerprint {vq.fingerprint[:12]}, {PROMPTS_FILE} names "
            f"{templates.vq_fingerprint[:12]}: put the image tokenizer there that the model was trained with"
        )
