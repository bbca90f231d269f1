"""Folders that tools wrote without an export's other files: one line says what is missing, and what it names brings it back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from model.hf.generation_uni_x import head_of
from tests.tools.tiny_export import write_export

# As of mergekit 0.1.5: of an export's code it copies the configuration alone, and neither processor nor image tokenizer.
KEPT = ("config.json", "configuration_uni_x.py", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MENDED = """
import sys
from transformers import AutoModelForCausalLM, AutoProcessor

export, merged = sys.argv[1:]
AutoProcessor.from_pretrained(export, trust_remote_code=True).save_pretrained(merged)
model = AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(merged, trust_remote_code=True)
codes = model.generate_images(**processor.draw(["x"]), guidance_scale=1.0, temperature=0)
print(len(processor.pictures(codes)))
"""


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("lost") / "export")


@pytest.fixture
def merged(export, tmp_path) -> Path:
    folder = tmp_path / "merged"
    folder.mkdir()
    for name in KEPT:
        shutil.copy(export / name, folder / name)
    return folder


def refusal(opening) -> str:
    with pytest.raises(OSError) as refused:
        opening()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_merged_folder_says_which_code_is_missing_and_what_brings_it_back(merged):
    for opening in (AutoModelForCausalLM, AutoConfig):
        said = refusal(lambda opening=opening: opening.from_pretrained(merged, trust_remote_code=True))
        assert f"{merged} has no modeling_uni_x.py" in said and f"save_pretrained('{merged}')" in said
    (merged / "model.safetensors").unlink()  # a configuration alone has all that it needs
    assert AutoConfig.from_pretrained(merged, trust_remote_code=True).model_type == "uni_x"


def test_a_folder_without_a_processor_says_so(export, merged):
    for path in export.glob("*_uni_x.py"):
        shutil.copy(path, merged / path.name)
    said = refusal(lambda: AutoProcessor.from_pretrained(merged, trust_remote_code=True))
    assert f"{merged} has no processor_config.json" in said and f"save_pretrained('{merged}')" in said


def test_what_the_line_names_brings_a_merged_folder_back(export, merged, tmp_path):
    """In a process that opened nothing of the export before: transformers then has the processor's code alone."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", MENDED, str(export), str(merged)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout.split() == ["1"], done.stderr[-2000:]


def test_a_merged_folder_without_code_rows_names_them(merged):
    """As mergekit writes with a tokenizer of its own: vocab_size is the tokenizer's then."""
    values = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps({**values, "vocab_size": values["image_token_offset"]}))
    (merged / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match="every code needs an embedding row. Tools that merge or resize cut off"
    ) as refused:
        AutoConfig.from_pretrained(merged, trust_remote_code=True)
    assert "\n" not in str(refused.value)


def test_a_head_whose_weight_has_another_name_or_form_is_called():
    """As of compressed-tensors (weight_packed) and of int8 weights: only a matrix of floats is cut before the product."""

    class Packed(nn.Linear):
        def forward(self, hidden):
            return hidden @ self.weight_packed.T

    head, hidden = nn.Linear(4, 6, bias=False), torch.ones(2, 4)
    expected = head(hidden)[..., 2:5]
    assert torch.equal(head_of(head, hidden, slice(2, 5)), expected)
    packed = Packed(4, 6, bias=False)
    packed.weight_packed, packed.weight = head.weight, None
    assert torch.equal(head_of(packed, hidden, slice(2, 5)), expected)
    replaced = nn.Linear(4, 6, bias=False)
    replaced.weight_packed = nn.Parameter(head.weight.detach().clone())
    del replaced.weight
    replaced.forward = lambda hidden: hidden @ replaced.weight_packed.T
    assert torch.equal(head_of(replaced, hidden, slice(2, 5)), expected)
