#!/usr/bin/env bash
# torch 2.13.0 on a CPU, transformers 4.57.6 (LlamaRMSNorm, whose form Qwen2 and Qwen3 share).
#
# torch.nn.functional.rms_norm is offered in place of the norms of Llama and Qwen. In float32 it is equal to the last bit. In half
# precision it is not: the models round the normed value to bfloat16 and then multiply by the weight, torch multiplies in float32
# and rounds once. A quarter of all outputs differ, torch's are nearer to the exact ones, and a model that was trained with one
# and runs with the other has other activations from its first layer on. Without a weight the two are equal: norm without one, round,
# multiply, and the models' own numbers come out.
#
# Output seen, 2026-11-29 (AMD EPYC, AVX-512; 512 x 2048 random numbers, weights 1 +- 0.3):
#   float32   differ 0.000; mean error: models' form 3.9e-08, torch's 3.9e-08; without its weight: equal
#   bfloat16  differ 0.261; mean error: models' form 1.5e-03, torch's 1.1e-03; without its weight: equal
#   float16   differ 0.259; mean error: models' form 1.9e-04, torch's 1.4e-04; without its weight: equal
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/seen.py" <<'PYTHON'
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

torch.manual_seed(0)
weight, x = 1 + 0.3 * torch.randn(2048), torch.randn(512, 2048)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    model = LlamaRMSNorm(2048, 1e-6)
    model.weight.data = weight
    model, given = model.to(dtype), x.to(dtype)
    with torch.no_grad():
        theirs = model(given)
        torchs = torch.nn.functional.rms_norm(given, (2048,), model.weight, 1e-6)
        apart = model.weight * torch.nn.functional.rms_norm(given.float(), (2048,), eps=1e-6).to(dtype)
    exact = given.double()
    exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-6) * model.weight.detach().double()
    differ = (theirs != torchs).float().mean().item()
    errors = [(one.detach() - exact).abs().mean().item() for one in (theirs, torchs)]
    name = str(dtype).removeprefix("torch.")
    print(f"{name:9} differ {differ:.3f}; mean error: models' form {errors[0]:.1e}, torch's {errors[1]:.1e}; without its weight: "
          f"{'equal' if torch.equal(theirs, apart) else 'other'}")
    assert torch.equal(theirs, apart)
    assert differ == 0 if dtype == torch.float32 else 0.2 < differ < 0.3 and errors[1] < errors[0]
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==4.57.6 numpy==2.1.3
"$folder/venv/bin/python" -W ignore "$folder/seen.py"
