"""Tokenizer of a foreign folder: tokenizer.json, and the settings files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretrain.system.errors import UserError

CONFIG, ADDED = "tokenizer_config.json", "added_tokens.json"

PLAIN: dict[str, tuple] = {
    "do_lower_case": (False,),
    "add_eos_token": (False,),
    "strip_accents": (False,),
    "tokenize_chinese_chars": (True,),
}
"""Settings that change ids -> the values with which tokenizer.json alone gives the same ids; null is always one."""

HARMLESS: dict[str, tuple[str, ...]] = {
    "notes of whoever saved the folder": (
        "_name_or_path",
        "name_or_path",
        "transformers_version",
        "tokenizer_file",
        "special_tokens_map_file",
        "auto_map",
        "is_local",
        "local_files_only",
        "backend",
        "processor_class",
        "from_slow",
        "_commit_hash",
    ),
    "the class around tokenizer.json, whose ids are those of the file": (
        "tokenizer_class",
        "use_fast",
        "vocab_file",
        "merges_file",
    ),
    "names of tokens: which are there is asked of tokenizer.json": (
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
        "sep_token",
        "cls_token",
        "mask_token",
        "additional_special_tokens",
        "extra_special_tokens",
        "image_token",
        "vision_bos_token",
        "vision_eos_token",
        "audio_token",
        "video_token",
        "model_specific_special_tokens",
    ),
    "text never becomes a control token here, whatever is set": ("split_special_tokens",),
    "lengths, padding and what a call returns: asked for where texts are encoded": (
        "model_max_length",
        "max_length",
        "padding_side",
        "truncation_side",
        "padding",
        "truncation",
        "stride",
        "pad_to_multiple_of",
        "pad_token_type_id",
        "truncation_strategy",
        "model_input_names",
        "return_token_type_ids",
    ),
    "spaces of decoded text, which stays as the model wrote it": (
        "clean_up_tokenization_spaces",
        "spaces_between_special_tokens",
    ),
    "tokenizers written in Python alone": ("sp_model_kwargs", "legacy", "errors", "use_default_system_prompt"),
    "begins a text of transformers; a document of ours begins with its first token": ("add_bos_token",),
    "turns are marked as a run is trained with": ("chat_template", "response_schema", "tool_parser_type"),
}
"""Reason -> the keys of tokenizer_config.json that change no ids here, for it."""

WITHOUT_EFFECT = {key: reason for reason, keys in HARMLESS.items() for key in keys}


def read_tokenizer(path: Path) -> tuple[Any, bytes]:
    """A tokenizer.json as a tokenizers.Tokenizer, and its bytes.

    UserError if it cannot be read, or if it or a file beside it gives an added token another id than the library does: the
    library numbers on from the vocabulary, whatever is written (0.22.2), and so does transformers.
    """
    from tokenizers import Tokenizer

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; pass --tokenizer the folder of the base model's tokenizer"
        ) from error
    try:
        tokenizer = Tokenizer.from_buffer(data)
        added = {token["content"]: token["id"] for token in json.loads(data).get("added_tokens", ())}
    except Exception as error:  # the Rust side raises a bare Exception
        raise UserError(f"{path}: not a tokenizer file ({error}); copy it again from the base model") from error
    _check_added(tokenizer, added, path)
    check_settings(path.with_name(CONFIG), tokenizer)
    beside = path.with_name(ADDED)
    if beside.is_file():
        _check_added(tokenizer, _object(beside), beside)
    return tokenizer, data


def check_settings(path: Path, tokenizer: Any) -> None:
    """Raises UserError for a key of a tokenizer_config.json, if there is one, that is unknown or asks for other ids."""
    if not path.is_file():
        return
    for key, value in _object(path).items():
        if key == "added_tokens_decoder":
            try:
                added = {token["content"]: int(number) for number, token in value.items()}
            except (AttributeError, TypeError, KeyError, ValueError):
                raise UserError(f"{path}: {key} cannot be read: copy it again from the base model") from None
            _check_added(tokenizer, added, path)
        elif value is None or key in WITHOUT_EFFECT:
            continue
        elif key == "add_prefix_space":
            _check_prefix(tokenizer, value, path)
        elif key in PLAIN:
            if value not in PLAIN[key]:
                alone = f"tokenizer.json alone does not do so: set it to {PLAIN[key][0]}"
                raise UserError(f"{path}: {key} is {value!r}, and {alone}")
        else:
            raise UserError(
                f"{path}: {key} ({repr(value)[:60]}) is not known, and may change ids: remove it if it does not"
            )


def _check_prefix(tokenizer: Any, wanted: bool, path: Path) -> None:
    """Check add_prefix_space: transformers applies it to byte-level tokenizers; others (Llama 2's) have their own
    way."""
    found = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    for part in found.get("pretokenizers", [found]):
        if part.get("type") == "ByteLevel" and part["add_prefix_space"] != wanted:
            has = f"tokenizer.json has {part['add_prefix_space']}"
            raise UserError(f"{path}: add_prefix_space is {wanted}, {has}: set both to what the model was trained with")


def _check_added(tokenizer: Any, added: dict[str, Any], path: Path) -> None:
    for content, number in added.items():
        found = tokenizer.token_to_id(content)
        if found != number:
            has = f"tokenizer.json gives it {found}" if found is not None else "tokenizer.json has no such token"
            raise UserError(
                f"{path}: says that {content} has id {number}, but {has}: copy both again from the base model"
            )


def _object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error.__class__.__name__}): copy it again from the base model"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is no JSON object: copy it again from the base model")
    return values
