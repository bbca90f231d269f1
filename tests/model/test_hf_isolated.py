"""An exported folder opens where this repository cannot be imported, and gives a picture and a caption there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.hf.configuration_uni_x import AUTO_MAP
from tests.model.tiny_hf import CODES, START, TEXT_IDS, document, tiny_model
from tools.export import from_checkpoint

ELSEWHERE = """
import importlib.abc, json, sys

class NoRepository(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("model", "tokenization", "pretrain", "tools", "tests"):
            raise ImportError(f"{name} is not for this process")

sys.meta_path.insert(0, NoRepository())
sys.modules["torchvision"] = None  # as where it is not installed: the model does not need it

import torch
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)
folder, prompt, caption_prompt, resaved = sys.argv[1], *map(json.loads, sys.argv[2:4]), sys.argv[4]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
ids = torch.tensor([prompt])
codes = model.generate_images(
    ids, unconditional_ids=ids[0, -2:], num_codes=6, guidance_scale=3.0, generator=torch.Generator().manual_seed(3)
)
ids = torch.tensor([caption_prompt])
text = model.generate(
    ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, logits_processor=model.text_only()
)
model.save_pretrained(resaved)
print(json.dumps({"codes": codes.tolist(), "text": text.tolist(), "kinds": AutoConfig.from_pretrained(
    folder, trust_remote_code=True).layer_kinds}))
"""


def run_elsewhere(folder: Path, work: Path, prompt: list[int], caption_prompt: list[int]) -> dict:
    work.mkdir()
    arguments = [str(folder), json.dumps(prompt), json.dumps(caption_prompt), str(work / "resaved")]
    result = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *arguments],
        cwd=work,
        env={**os.environ, "HF_HOME": str(work / "hf"), "HF_MODULES_CACHE": str(work / "modules")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_an_export_works_without_the_repository(tmp_path):
    model = tiny_model(seed=12)
    folder = tmp_path / "export"
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    prompt, caption_prompt = [*document([6]), START], document([0, 6, 3])

    found = run_elsewhere(folder, tmp_path / "elsewhere", prompt, caption_prompt)

    ids = torch.tensor([prompt])
    codes = model.generate_images(
        ids, unconditional_ids=ids[0, -2:], num_codes=6, guidance_scale=3.0, generator=torch.Generator().manual_seed(3)
    )
    assert found["codes"] == codes.tolist()
    assert all(0 <= code < CODES for code in found["codes"][0])
    ids = torch.tensor([caption_prompt])
    text = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, logits_processor=model.text_only()
    )
    assert found["text"] == text.tolist()
    assert len(found["text"][0]) > len(caption_prompt)
    assert all(token < TEXT_IDS and token != START for token in found["text"][0][len(caption_prompt) :])
    assert found["kinds"] == model.config.layer_kinds

    # what a user saves there, after fine-tuning say, is a folder of the same kind
    resaved = tmp_path / "elsewhere" / "resaved"
    assert run_elsewhere(resaved, tmp_path / "again", prompt, caption_prompt) == found


def test_two_exports_of_one_name_run_their_own_code(tmp_path, monkeypatch):
    """transformers 5.24.0 keeps a module by the folder's last name and the one file that it was asked for; 4.57.6 runs that
    file anew, and the files that it imports are the first folder's."""
    model = tiny_model(seed=3)
    shutil.copytree(from_checkpoint.CODE, tmp_path / "code")
    with open(tmp_path / "code" / "layers_uni_x.py", "a") as file:
        file.write("\n\nUniXMLP.of_another_release = True\n")
    folders = [tmp_path / place / "model" for place in ("a", "b", "c")]
    for folder, code in zip(folders, (from_checkpoint.CODE, tmp_path / "code", from_checkpoint.CODE), strict=True):
        model.save_pretrained(folder)
        monkeypatch.setattr(from_checkpoint, "CODE", code)
        from_checkpoint.write_code(folder)
    code = """if True:
        import sys
        from transformers import AutoModelForCausalLM
        for folder in sys.argv[1:]:
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
            print(hasattr(model.model.layers[0].mlp, "of_another_release"))"""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code, *map(str, folders)],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True", "False"]


TRAVELS = {"", "__future__", "collections", "functools", "math", "typing", "torch", "transformers"}
PICTURES = {
    "modeling_uni_x.py": {"importlib", "inspect", "sys", "pathlib"},
    "pretrained_uni_x.py": {"shutil", "pathlib"},
    "configuration_uni_x.py": {"importlib", "pathlib", "sys"},
    "pictures_uni_x.py": {"numpy", "PIL"},
    "vqgan_uni_x.py": {"json", "pathlib", "types", "safetensors"},
    "sources_uni_x.py": {"base64", "io", "urllib", "pathlib", "numpy", "PIL"},
    "codes_uni_x.py": {"json", "pathlib", "PIL"},
    "processing_uni_x.py": {"importlib", "json", "shutil", "sys", "pathlib", "PIL"},
    "text_uni_x.py": {"json", "re", "tokenizers"},
}


def test_the_files_that_travel_import_nothing_of_the_repository():
    folder = Path(__file__).parents[2] / "model" / "hf"
    for path in folder.glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                package = line.split()[1].split(".")[0]
                assert package in TRAVELS | PICTURES.get(path.name, set()), (path, line)


@pytest.mark.parametrize("entry", ["configuration_uni_x", "modeling_uni_x", "processing_uni_x"])
def test_a_file_that_transformers_is_asked_for_names_all_that_it_needs(entry):
    """transformers 4.57 copies the files that it imports, and not what those import."""
    folder = Path(__file__).parents[2] / "model" / "hf"

    def imported(name: str) -> set[str]:
        return set(re.findall(r"^from \.(\w+) import", (folder / f"{name}.py").read_text(), re.M))

    named = imported(entry)
    assert {deeper for name in named for deeper in imported(name)} <= named
