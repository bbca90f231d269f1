"""Reader of a Hugging Face folder of a language model or of Uni-X: its configuration, and its tensors one at a time.

Reads language models of the families in model/families.py, exports of this project, and the published Uni-X models.
Unsupported features of a folder are refused by name; nothing is ignored silently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.config import MODEL_TYPES, ModelConfig, layer_kinds
from model.families import FAMILIES, setting
from model.hf_keys import check_keys
from model.rope import rope_of
from model.stored_tensors import INDEX, SINGLE, stored_tensors_of
from model.tokenizer_file import read_tokenizer
from model.weight_names_released import from_released
from pretrain.system.errors import UserError

PICTURE_MARKS = ("<|vision_start|>", "<|vision_end|>")
ALL_ENDS = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.end_of_text))


@dataclass(frozen=True)
class HuggingFaceFolder:
    """An open folder: config.json, and the file of each tensor under the names of this project's Hugging Face model."""

    folder: Path
    values: dict
    files: dict[str, Path]
    stored_names: dict[str, str]

    @property
    def published(self) -> bool:
        """Whether the folder is a published Uni-X model."""
        return "num_vision_encode_layers" in self.values

    @property
    def is_uni_x(self) -> bool:
        """Whether the folder has vision weights and image tokens already."""
        return self.published or self.values.get("model_type") in MODEL_TYPES

    def tensor(self, name: str) -> Tensor:
        """One tensor, as stored."""
        with self._open(name) as (file, stored):
            return file.get_tensor(stored)

    def described(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of one tensor, without reading it."""
        with self._open(name) as (file, stored):
            part = file.get_slice(stored)
            return tuple(part.get_shape()), part.get_dtype()

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple]:
        from safetensors import SafetensorError, safe_open

        path = self.files[name]
        try:
            with safe_open(path, framework="pt") as file:
                yield file, self.stored_names[name]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}): download it again") from None


def open_source(folder: Path) -> HuggingFaceFolder:
    """Open a folder: config.json and the list of tensors. Raises UserError for an unsupported one."""
    values = read_json(folder / "config.json")
    check_keys(values, folder / "config.json")
    stored = _stored_files(folder)
    layers, last = values.get("num_hidden_layers", 0), values.get("num_vision_decode_layers", 0)
    names = {from_released(name, layers, last): name for name in stored}
    return HuggingFaceFolder(folder, values, {ours: stored[theirs] for ours, theirs in names.items()}, names)


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises UserError when the file is missing or has something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error.__class__.__name__}): is this a Hugging Face folder?"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is no JSON object: is this a Hugging Face folder?")
    return values


def _stored_files(folder: Path) -> dict[str, Path]:
    """Stored name -> file of every tensor. Raises UserError where there is none."""
    files = stored_tensors_of(folder)
    if not files:
        pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        why = (
            f"{pickles[0]} is there, which is a pickle: save it as safetensors"
            if pickles
            else "is the download complete?"
        )
        raise UserError(f"{folder}: has no {SINGLE} and no {INDEX}: {why}")
    return files


def open_tokenizer(source: HuggingFaceFolder, folder: Path | None, add_marks: bool = False) -> tuple[Any, bytes] | None:
    """The tokenizer of `folder` or of the model's own, and its tokenizer.json; None where a Uni-X folder has none.

    add_marks: whether the marks of pictures that it lacks are added to it. Raises UserError.
    """
    path = (folder or source.folder) / "tokenizer.json"
    if not path.is_file() and source.is_uni_x:
        return None
    tokenizer, data = read_tokenizer(path)
    missing = [mark for mark in PICTURE_MARKS if tokenizer.token_to_id(mark) is None]
    if missing and not add_marks:
        raise UserError(f"{path}: has no token {missing[0]}: --add-tokens adds it, or give another --tokenizer")
    if missing:
        tokenizer.add_special_tokens(missing)
        tokenizer = without_framing(tokenizer)
        data = (tokenizer.to_str(pretty=True) + "\n").encode("utf-8")
    return tokenizer, data


def without_framing(tokenizer: Any) -> Any:
    """The tokenizer without tokens around a text: Llama's begins each with `<|begin_of_text|>`, documents here do not.

    So what transformers makes of a text with it is what training and the processor of an export make.
    """
    values = json.loads(tokenizer.to_str())
    found = values["post_processor"]
    parts = found["processors"] if found and found["type"] == "Sequence" else [found] if found else []
    parts = [
        part for part in parts if part["type"] == "ByteLevel"
    ]  # only offsets are checked; other settings add tokens
    values["post_processor"] = parts[0] if parts else None
    return type(tokenizer).from_str(json.dumps(values, ensure_ascii=False))


def special_ids(source: HuggingFaceFolder, tokenizer: Any | None) -> tuple[int, int, int]:
    """Ids of the image markers and of the end of text, from the tokenizer. Raises UserError."""
    values = source.values
    if tokenizer is None and not source.published:
        return tuple(values[key] for key in ("vision_start_token_id", "vision_end_token_id", "eos_token_id"))
    if tokenizer is None:  # as it is published: Qwen's two picture tokens are neighbours
        start, eos = values["vision_start_id"], values.get("eos_token_id")
        if eos is None:
            print(f"warning: {source.folder}: says nowhere which token ends a text: 0 is written, --tokenizer mends it")
        return start, start + 1, eos or 0
    names = FAMILIES[values["model_type"]].end_of_text if values["model_type"] in FAMILIES else ALL_ENDS
    start, end = (tokenizer.token_to_id(mark) for mark in PICTURE_MARKS)
    eos = next((found for found in map(tokenizer.token_to_id, names) if found is not None), None)
    if eos is None:
        raise UserError(f"{source.folder}: the tokenizer has no token {' or '.join(names)}: give another --tokenizer")
    if source.published and start != values["vision_start_id"]:
        there = f"config.json says vision_start_id {values['vision_start_id']}"
        raise UserError(
            f"{source.folder}: {PICTURE_MARKS[0]} is {start} in the tokenizer, {there}: give another --tokenizer"
        )
    return start, end, eos


def model_config(
    source: HuggingFaceFolder,
    special: tuple[int, int, int],
    kinds: tuple[str, ...] | None,
    codebook_size: int,
    image_token_offset: int,
    row_multiple: int,
    text_ids: int = 0,
) -> ModelConfig:
    """Configuration of the Uni-X model for the folder's weights; the embedding's rows are rounded up to `row_multiple`.

    kinds (one for each layer; None: all shared), codebook_size and image_token_offset (0: the rows of the embedding) are
    for language models; a Uni-X folder has its own. text_ids: those that the tokenizer has, none of which may be a code's.
    Raises UserError for a Uni-X folder with kinds, and for an offset among the text ids.
    """
    values = source.values
    if source.is_uni_x and kinds:
        raise UserError(f"{source.folder}: has layer kinds of its own: leave --separate and --every out")
    layers = values["num_hidden_layers"]
    if values["model_type"] in MODEL_TYPES:
        config = ModelConfig.from_dict(values)
        rows = -(-config.vocab_size // row_multiple) * row_multiple
        return ModelConfig.from_dict({**config.to_dict(), "vocab_size": rows})
    if source.published:
        offset, codebook_size = values["real_text_vocab_size"], values["vision_vocab_size"]
        kinds = layer_kinds(layers, values["num_vision_encode_layers"], values["num_vision_decode_layers"])
    else:
        offset = image_token_offset or max(values["vocab_size"], text_ids)
        kinds = kinds or layer_kinds(layers)
        if offset <= max(special):
            raise UserError(
                f"--image-token-offset {offset} is not above the special tokens, as {max(special)}: raise it"
            )
        if offset < text_ids:
            raise UserError(
                f"--image-token-offset {offset}: the tokenizer has {text_ids} ids, and those from there on would be codes: raise it"
            )
    start, end, eos = special
    name = f"{source.folder}/config.json"
    family = FAMILIES[values["model_type"]]
    heads = values["num_attention_heads"]
    theta, scaling = rope_of(values, setting(values, "rope_theta"), name)
    return ModelConfig(
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=setting(values, "num_key_value_heads") or heads,
        head_dim=setting(values, "head_dim") or values["hidden_size"] // heads,
        vocab_size=-(-(offset + codebook_size) // row_multiple) * row_multiple,
        image_token_offset=offset,
        codebook_size=codebook_size,
        vision_start_token_id=start,
        vision_end_token_id=end,
        eos_token_id=eos,
        layer_kinds=kinds,
        attention_bias=family.attention_bias,
        qk_norm=family.qk_norm,
        rope_theta=theta,
        rms_norm_eps=setting(values, "rms_norm_eps"),
        tie_word_embeddings=setting(values, "tie_word_embeddings"),
        initializer_range=setting(values, "initializer_range"),
        max_position_embeddings=setting(values, "max_position_embeddings"),
        rope_scaling=scaling,
    )
