#!/usr/bin/env bash
# torch 2.13.0 and transformers 4.57.6: what a process imports that trains eagerly, or only reads a model's configuration.
#
#   import torch                                neither the compiler (torch._dynamo) nor sympy
#   torch.optim.AdamW([parameter])              both, though nothing is compiled: the constructor adds a parameter group, and
#                                               that method is marked as not to be compiled by importing the compiler
#   from transformers import PretrainedConfig   sympy with torch.distributed.tensor, though no tensor is made: a debugging helper
#                                               imports it where torch.distributed is available
#   from transformers import PreTrainedModel    the compiler, too: a decorator of its class body imports it
#
# So TORCH_COMPILE_DISABLE=1 does not keep the compiler out of a process either. What counts start-up has to look at
# sys.modules after the first optimizer, not after the imports.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3 transformers==4.57.6
cat > "$folder/imported.py" <<'PY'
import os
import subprocess
import sys

CASES = {
    "import torch": ("import torch", []),
    "AdamW": (
        "import torch; torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])",
        ["sympy", "torch._dynamo", "torch.distributed.tensor"],
    ),
    "PretrainedConfig": ("from transformers import PretrainedConfig", ["sympy", "torch.distributed.tensor"]),
    "PreTrainedModel": ("from transformers import PreTrainedModel", ["sympy", "torch._dynamo", "torch.distributed.tensor"]),
}
ASK = "; import sys; print(*sorted({'sympy', 'torch._dynamo', 'torch.distributed.tensor'} & set(sys.modules)))"
same = True
for disabled in ("", "1"):
    for name, (code, expected) in CASES.items():
        environment = {**os.environ, "TORCH_COMPILE_DISABLE": disabled}
        if not disabled:
            del environment["TORCH_COMPILE_DISABLE"]
        done = subprocess.run([sys.executable, "-c", code + ASK], env=environment, capture_output=True, text=True, check=True)
        found = done.stdout.split()
        print(f"{'TORCH_COMPILE_DISABLE=1 ' * bool(disabled)}{name}: {' '.join(found) or 'none'}")
        same = same and found == expected
print("as described above" if same else "changed")
sys.exit(0 if same else 1)
PY
"$folder/venv/bin/python" "$folder/imported.py"
