"""A folder's tensors are those that transformers would load; two sets of them in one folder are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from model.stored_tensors import INDEX, SINGLE, stored_tensors_of
from pretrain.system.errors import UserError


def write(folder, files: dict[str, list[str]], index: dict[str, str] | None = None):
    for name, tensors in files.items():
        save_file({tensor: torch.zeros(2) for tensor in tensors}, folder / name)
    if index is not None:
        (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


def test_one_file_or_those_of_the_index(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = write(tmp_path / "one", {SINGLE: ["a", "b"], "consolidated.safetensors": ["z"]})
    assert stored_tensors_of(one) == {"a": one / SINGLE, "b": one / SINGLE}
    write(one, {}, {"a": SINGLE, "b": SINGLE})  # an index of that one file says the same
    assert stored_tensors_of(one).keys() == {"a", "b"}
    two = write(
        tmp_path / "two",
        {"1.safetensors": ["a"], "2.safetensors": ["b"], "old.safetensors": ["a", "c"]},
        {"a": "1.safetensors", "b": "2.safetensors"},
    )
    assert stored_tensors_of(two) == {"a": two / "1.safetensors", "b": two / "2.safetensors"}
    assert stored_tensors_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("files", "index", "message"),
    [
        (
            {SINGLE: ["a"], "1.safetensors": ["a"]},
            {"a": "1.safetensors"},
            "holds model.safetensors and an .*remove the stale one",
        ),
        ({"1.safetensors": ["a", "b"]}, {"a": "1.safetensors"}, "1.safetensors: holds b, which .* does not name"),
        (
            {"1.safetensors": ["a"]},
            {"a": "1.safetensors", "b": "1.safetensors"},
            "1.safetensors holds b, which it does not",
        ),
        (
            {"1.safetensors": ["a"], "2.safetensors": ["a"]},
            {"a": "1.safetensors", "b": "2.safetensors"},
            "a is in 1.safetensors",
        ),
        ({}, {"a": "1.safetensors"}, "1.safetensors is missing"),
        ({}, {"a": 1}, "cannot be read as an index"),
        ({"1.safetensors": ["a"]}, {"a": "old/1.safetensors"}, "names 'old/1.safetensors', which is not in its folder"),
    ],
)
def test_what_does_not_agree_is_refused(files, index, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        stored_tensors_of(write(tmp_path, files, index))
    assert "\n" not in str(error.value)
