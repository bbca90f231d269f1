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

from model.hf.generation_uni_x import head_of
from tests.tools.tiny_export import write_export

# As of mergekit 0.1.5: of an export's code it copies the configuration alone, and neither processor nor image tokenizer.
KEPT = ("config.json", "configuration_uni_x.py", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
REFUSED = """
import json, shutil, sys
from pathlib import Path
from types import SimpleNamespace
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

export, merged = map(Path, sys.argv[1:])
said = {}

def keep(name, opening):
    try:
        found = opening()
        said[name] = f"opened: {getattr(found, 'model_type', found)}"
    except (OSError, ValueError) as error:
        said[name] = f"{type(error).__name__}: {error}"

keep("model", lambda: AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=True))
keep("config", lambda: AutoConfig.from_pretrained(merged, trust_remote_code=True))
weights = (merged / "model.safetensors").rename(merged / "away")
keep("config alone", lambda: AutoConfig.from_pretrained(merged, trust_remote_code=True))
values = json.loads((merged / "config.json").read_text())
(merged / "config.json").write_text(json.dumps({**values, "vocab_size": values["image_token_offset"]}))
keep("no rows of codes", lambda: AutoConfig.from_pretrained(merged, trust_remote_code=True))
for path in export.glob("*_uni_x.py"):
    shutil.copy(path, merged / path.name)
(merged / "config.json").write_text(json.dumps(values))
keep("no processor", lambda: AutoProcessor.from_pretrained(merged, trust_remote_code=True))

model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
weight = model.model.layers[0].mlp.up_proj.weight
for name, marks in (("packed", (True, False)), ("packed, scales too", (True, True)), ("not packed", (False, False))):
    weight.quant_state = SimpleNamespace(packing_format_for_cpu=marks[0], original_nested=marks[1])
    keep(name, lambda: model.save_pretrained(merged.parent / name))
    said[f"{name}, written"] = (merged.parent / name).exists()
print(json.dumps(said))
"""
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


def in_a_process(script: str, export: Path, folder: Path) -> tuple[str, Path]:
    """What a script prints, of the export and a merged folder; modules of two caches do not mix in one process."""
    merged = folder / "merged"
    merged.mkdir()
    for name in KEPT:
        shutil.copy(export / name, merged / name)
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_MODULES_CACHE": str(folder / "modules")}
    command = [sys.executable, "-c", script, str(export), str(merged)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1], merged


@pytest.fixture(scope="module")
def refused(export, tmp_path_factory) -> tuple[dict, Path]:
    printed, merged = in_a_process(REFUSED, export, tmp_path_factory.mktemp("refused"))
    said = json.loads(printed)
    assert not [line for line in said.values() if "\n" in str(line)]
    return said, merged


def test_a_merged_folder_says_which_code_is_missing_and_what_brings_it_back(refused):
    said, merged = refused
    for name in ("model", "config"):
        assert said[name].startswith(f"OSError: {merged} has no modeling_uni_x.py"), said[name]
        assert f"save_pretrained('{merged}')" in said[name]
    assert said["config alone"] == "opened: uni_x"  # a configuration has all that it needs


def test_a_folder_without_a_processor_says_so(refused):
    said, merged = refused
    assert said["no processor"].startswith(f"OSError: {merged} has no processor_config.json")
    assert f"save_pretrained('{merged}')" in said["no processor"]


def test_a_merged_folder_without_code_rows_names_them(refused):
    """As mergekit writes with a tokenizer of its own: vocab_size is the tokenizer's then."""
    line = refused[0]["no rows of codes"]
    assert line.startswith("ValueError: vocab_size ") and "row. Tools that merge or resize cut off the rows" in line


def test_weights_that_bitsandbytes_would_save_wrong_are_not_saved(refused):
    """Its own marks, as of 0.50.2; `make test-tools ONLY=bitsandbytes` has the real thing."""
    said = refused[0]
    assert "layers.0.mlp.up_proj: bitsandbytes has packed it" in said["packed"] and "before the first" in said["packed"]
    assert said["packed, written"] is False and said["packed, scales too, written"] and said["not packed, written"]


def test_what_the_line_names_brings_a_merged_folder_back(export, tmp_path):
    """In a process that opened nothing of the export before: transformers then has the processor's code alone."""
    assert in_a_process(MENDED, export, tmp_path)[0] == "1"


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
