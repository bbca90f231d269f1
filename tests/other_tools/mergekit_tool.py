"""mergekit: the mean of an export and a tuned one (its weights moved a little), opened and drawn with."""

import shutil
import subprocess

import torch
from safetensors.torch import load_file, save_file
from steps import MODEL, WORK, draws, float32_pictures, processor, say, seen, share
from transformers import AutoModelForCausalLM, AutoProcessor

MERGE = """\
merge_method: linear
dtype: float32
models:
  - {model: FIRST, parameters: {weight: 0.5}}
  - {model: SECOND, parameters: {weight: 0.5}}
"""

tuned, merged = WORK / "tuned", WORK / "merged"
shutil.copytree(MODEL, tuned)
weights = load_file(MODEL / "model.safetensors")
chance = torch.Generator().manual_seed(0)
moved = {
    name: weight + 0.01 * weight.std() * torch.randn(weight.shape, generator=chance) for name, weight in weights.items()
}
save_file(moved, tuned / "model.safetensors", {"format": "pt"})
(WORK / "merge.yaml").write_text(MERGE.replace("FIRST", str(MODEL)).replace("SECOND", str(tuned)))
subprocess.run(["mergekit-yaml", "merge.yaml", "merged", "--trust-remote-code"], check=True, cwd=WORK)
found = load_file(merged / "model.safetensors")
mean = {name: (weight + moved[name]) / 2 for name, weight in weights.items()}
assert found.keys() == mean.keys()
largest = max(float((found[name] - mean[name]).abs().max()) for name in mean)
seen(f"largest difference from the mean {largest:.1e}; files {sorted(path.name for path in merged.iterdir())}")
assert largest < 1e-6
say("merged", f"{len(found)} tensors, their mean")


def opened():
    return AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=True, dtype=torch.float32).eval()


try:
    opened()
except OSError as error:
    line = str(error)
    seen(line)
    assert "modeling_uni_x.py" in line and "save_pretrained" in line and "\n" not in line, line
    say("opened as it is", "refused: its code files are missing, and what brings them back is said")
else:
    raise AssertionError("mergekit has copied the code: the page says otherwise")
AutoProcessor.from_pretrained(MODEL, trust_remote_code=True).save_pretrained(merged)
model = opened()
seen(f"share of codes {share(model, float32_pictures()):.3f}")
say("drawing afterwards", draws(model))

# with a tokenizer entry the rows of the codes are gone, and opening says so
cut = WORK / "cut"
(WORK / "cut.yaml").write_text(
    (WORK / "merge.yaml").read_text() + "tokenizer: {source: base}\n" + f"base_model: {MODEL}\n"
)
subprocess.run(["mergekit-yaml", str(WORK / "cut.yaml"), str(cut), "--trust-remote-code"], check=True)
rows, whole = load_file(cut / "model.safetensors")["lm_head.weight"].shape[0], weights["lm_head.weight"].shape[0]
seen(f"{rows} rows of {whole}")
assert rows < whole
processor().save_pretrained(cut)
try:
    AutoModelForCausalLM.from_pretrained(cut, trust_remote_code=True)
except ValueError as error:
    seen(str(error))
    assert "every code needs an embedding row" in str(error) and "\n" not in str(error), error
else:
    raise AssertionError("a merged folder without rows of codes opens")
