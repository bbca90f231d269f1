"""Text weights of an export, read tensor by tensor; also of a tuned or merged one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.config import MODEL_TYPES, ModelConfig
from pretrain.system.errors import UserError

ROWS = ("model.embed_tokens.weight", "lm_head.weight")
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_configuration(folder: Path) -> ModelConfig:
    """Model configuration of an export, from small files. Raises UserError for other folders, quantized ones and
    adapters."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give an export, one that tools/convert_to_hf.py wrote or a tuned one")
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: holds an adapter: merge it into its base (merge_and_unload), save that, and give its folder"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: copy it from the export that this folder was made of")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not JSON ({error}): copy it from the export") from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{folder / 'config.json'} is of model_type {kind!r}, not {MODEL_TYPES[0]!r}: not a Uni-X export"
        )
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method")
        raise UserError(
            f"{folder}: is quantized ({method}): make the plain folder of the export before that, then quantize it"
        )
    return ModelConfig.from_dict(values)


def text_weights(folder: Path, config: ModelConfig) -> tuple[list[tuple[str, Any]], Iterator[tuple[str, Any]]]:
    """Names with meta tensors of the text path, with the rows of image tokens, and the tensors in that order.

    Raises UserError for weights that are absent, of another shape, or in numbers that are no floats.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from model.weight_names import training_names
    from tools.export.text_only import is_of_text

    names = [name for parts in training_names(config).values() for name in parts if is_of_text(name)]
    files = _files(folder)
    try:
        opened = {path: safe_open(path, "pt") for path in sorted(set(files.values()))}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: its weights cannot be read ({error}): copy or save the model again") from None
    held = {path: set(file.keys()) for path, file in opened.items()}
    absent = [name for name in names if name not in files or name not in held[files[name]]]
    if absent:
        raise UserError(f"{folder} has no {absent[0]}: its config.json is of another model, or a tool left it out")
    described = []
    for name in names:
        part = opened[files[name]].get_slice(name)
        shape, kind = part.get_shape(), part.get_dtype()
        if kind not in ("F32", "BF16", "F16"):
            raise UserError(f"{folder}: {name} is {kind}, a quantized weight: give the export before that")
        if name in ROWS and shape[0] < config.image_token_offset:
            raise UserError(
                f"{folder}: {name} has {shape[0]} rows, and text alone needs {config.image_token_offset}: a tool cut the rows "
                "beyond its tokenizer off: merge again without a tokenizer of its own"
            )
        dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[kind]
        described.append((name, torch.empty(shape, dtype=dtype, device="meta")))
    return described, ((name, opened[files[name]].get_tensor(name)) for name in names)


def _files(folder: Path) -> dict[str, Path]:
    """The file of each weight."""
    from safetensors import SafetensorError, safe_open

    if (folder / INDEX).is_file():
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in places.items()}
    if not (folder / ONE_FILE).is_file():
        raise UserError(f"{folder} has no {ONE_FILE} and no {INDEX}: save the model with safetensors")
    try:
        with safe_open(folder / ONE_FILE, "pt") as file:
            return dict.fromkeys(file.keys(), folder / ONE_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / ONE_FILE}: cannot be read ({error}): copy or save the model again") from None
