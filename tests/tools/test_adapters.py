"""The adapters of docs/fine-tuning.md, as they stand there: trained, saved, read again, merged, drawn with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.model.tiny_hf import KINDS
from tests.tokenization.corpora import picture
from tests.tools.tiny_export import CHATML, write_export
from tools.export.folder import open_export

PAGE = Path(__file__).resolve().parents[2] / "docs/fine-tuning.md"
AFTER = """
import json
torch.set_num_threads(1)
batch = batch_of(examples)
models = {"tuned": tuned, "merged": merged, "base": AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
          "reloaded": AutoModelForCausalLM.from_pretrained("work/merged", trust_remote_code=True)}
with torch.no_grad():
    logits = {name: model.eval()(**batch).logits for name, model in models.items()}
torch.save(logits, "work/logits.pt")
prompts = processor.draw(["red heart"])
drawn = [model.generate_images(**prompts, temperature=0).tolist() for model in (tuned, models["reloaded"])]
labels = [[token for token in row.tolist() if token != -100] for row in batch["labels"]]
answers = [processor.tokenizer.decode(row) for row in labels]
adapted = [name for name, weight in tuned.named_parameters() if weight.requires_grad]
print(json.dumps({"losses": losses, "drawn": drawn, "answers": answers, "adapted": adapted}))
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder in which the page's code was run, and what was found there."""
    root = tmp_path_factory.mktemp("adapters")
    work = root / "work"
    write_export(work / "demo/model", CHATML)
    (work / "demo/drawn").mkdir()
    (work / "demo/drawn/0000-00.png").write_bytes(picture(0))
    code = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    environment = {**os.environ, "HF_HOME": str(root / "hf"), "HF_MODULES_CACHE": str(root / "modules")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code + AFTER],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return work, json.loads(done.stdout.splitlines()[-1])


def test_adapters_of_both_branches_learn_the_answers_and_nothing_else(tuned):
    work, found = tuned
    assert found["losses"][-1] < found["losses"][0]
    assert [answer.replace("<|im_end|>", "|") for answer in found["answers"]] == ["A red heart.|\n", "Red.|\n"]
    assert all(".lora_" in name for name in found["adapted"])
    for layer, kind in enumerate(KINDS):
        assert any(f".layers.{layer}." in name for name in found["adapted"])
        assert any(f".vision_layers.{layer}." in name for name in found["adapted"]) == (kind == "separated")
    saved = load_file(work / "adapters/adapter_model.safetensors")
    assert len(saved) == len(found["adapted"]) and all("lora_" in name for name in saved)


def test_saved_read_again_and_merged_they_are_the_tuned_model(tuned):
    work, found = tuned
    logits = torch.load(work / "logits.pt", weights_only=True)
    assert (logits["tuned"] - logits["base"]).abs().max() > 1e-3
    for name in ("merged", "reloaded"):
        torch.testing.assert_close(logits[name], logits["tuned"], atol=1e-4, rtol=1e-4)
    assert found["drawn"][0] == found["drawn"][1]


def test_what_was_merged_is_an_export(tuned):
    work, _ = tuned
    export = open_export(work / "merged")
    before = load_file(work / "demo/model/model.safetensors")
    after = load_file(work / "merged/model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.rsplit(".", 2)[-2].endswith("_proj") for name in moved)
    assert export.templates.image_to_text == ("It is:",)
