"""The files of a base's tokenizer: each key is used, changes no ids for a reason, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.tokenizer_file import HARMLESS, PLAIN, WITHOUT_EFFECT, read_tokenizer
from pretrain.system.errors import UserError
from tests.tools.tiny_export import CHATML, write_tokenizer

REAL = {
    "Qwen2.5": (
        "add_bos_token add_prefix_space added_tokens_decoder additional_special_tokens bos_token chat_template "
        "clean_up_tokenization_spaces eos_token errors model_max_length pad_token split_special_tokens tokenizer_class "
        "unk_token"
    ),
    "Llama 2": (
        "add_bos_token add_eos_token added_tokens_decoder bos_token chat_template clean_up_tokenization_spaces eos_token legacy "
        "model_max_length pad_token padding_side sp_model_kwargs tokenizer_class unk_token use_default_system_prompt"
    ),
    "Llama 3": (
        "added_tokens_decoder bos_token chat_template clean_up_tokenization_spaces eos_token model_input_names model_max_length "
        "tokenizer_class"
    ),
    "Qwen2TokenizerFast of 4.57.6": (
        "added_tokens_decoder bos_token clean_up_tokenization_spaces eos_token extra_special_tokens model_max_length pad_token "
        "tokenizer_class unk_token"
    ),
    "Qwen2Tokenizer of 5.24.0": (
        "add_prefix_space backend bos_token eos_token is_local local_files_only model_max_length pad_token tokenizer_class unk_token"
    ),
    "LlamaTokenizer of 5.24.0": (
        "add_prefix_space backend bos_token clean_up_tokenization_spaces eos_token is_local local_files_only model_max_length "
        "tokenizer_class unk_token use_default_system_prompt"
    ),
}
VALUES = {"add_prefix_space": False, "add_eos_token": False}


@pytest.fixture
def folder(tmp_path) -> Path:
    write_tokenizer(tmp_path, CHATML)
    return tmp_path


def write(folder: Path, **values) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("name", REAL)
def test_every_key_of_a_real_file_is_known(name, folder):
    tokenizer, _ = read_tokenizer(folder / "tokenizer.json")
    decoder = {str(tokenizer.token_to_id(mark)): {"content": mark} for mark in CHATML}
    keys = REAL[name].split()
    path = write(folder, **{key: decoder if key == "added_tokens_decoder" else VALUES.get(key, "x") for key in keys})
    assert read_tokenizer(path)[1] == path.read_bytes()
    used = {"added_tokens_decoder", "add_prefix_space"}
    assert all((key in WITHOUT_EFFECT) + (key in PLAIN) + (key in used) == 1 for key in keys)
    listed = [key for keys in HARMLESS.values() for key in keys]
    assert len(listed) == len(set(listed)) and not set(listed) & (PLAIN.keys() | used)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"added_tokens_decoder": {"5": {"content": "<|im_start|>"}}},
            r"<\|im_start\|> has id 5, but tokenizer.json gives it 256",
        ),
        (
            {"added_tokens_decoder": {"300": {"content": "<new>"}}},
            "<new> has id 300, but tokenizer.json has no such token",
        ),
        ({"added_tokens_decoder": 3}, "added_tokens_decoder cannot be read"),
        ({"add_prefix_space": True}, "add_prefix_space is True, tokenizer.json has False"),
        ({"do_lower_case": True}, "do_lower_case is True"),
        ({"dropout": 0.1}, r"dropout \(0.1\) is not known"),
    ],
)
def test_what_would_make_other_ids_is_refused(values, message, folder):
    path = write(folder, **values)
    with pytest.raises(UserError, match="tokenizer_config.json: .*" + message) as error:
        read_tokenizer(path)
    assert "\n" not in str(error.value)


def test_ids_that_the_library_does_not_give_are_refused(folder):
    """tokenizers 0.22.2 numbers added tokens on from the vocabulary, whatever the file says."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"][-1]["id"] += 7
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"<\|vision_end\|> has id 267, but"):
        read_tokenizer(path)
    write_tokenizer(folder, CHATML)
    (folder / "added_tokens.json").write_text('{"<tool_call>": 261}')
    with pytest.raises(UserError, match="added_tokens.json: says that <tool_call> has id 261, but"):
        read_tokenizer(path)
