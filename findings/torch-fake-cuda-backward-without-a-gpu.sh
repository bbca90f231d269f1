#!/usr/bin/env bash
# torch 2.13.0, FakeTensorMode: a layer on device "cuda" on a machine without a GPU, as for a dry run on a login node.
#
#   forward     works: shapes, dtypes and devices are computed, nothing is allocated
#   backward    RuntimeError from the autograd engine, which asks the device that is not there:
#                 builds with CUDA     "hasPrimaryContext expects a valid device index, but got device_index=0"
#                 builds without CUDA  "PyTorch is not linked with support for cuda devices"
#
# So memory and communication of a training step cannot be counted there, only those of a forward pass, although each operation of the
# backward pass has a fake kernel too. With a device guard and CUDA hooks of one's own, 50 lines of C++ registered before torch
# is imported, both kinds of build run it.
#
# Output seen, 2026-11-30:
#   forward: torch.Size([4, 3]) torch.bfloat16 cuda:0
#   backward: RuntimeError: hasPrimaryContext expects a valid device index, but got device_index=0
# and with a build without CUDA
#   backward: RuntimeError: PyTorch is not linked with support for cuda devices
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3
cat > "$folder/fake.py" <<'PYTHON'
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

with FakeTensorMode():
    layer = torch.nn.Linear(2, 3, device="cuda", dtype=torch.bfloat16)
    made = layer(torch.empty(4, 2, device="cuda", dtype=torch.bfloat16))
    print(f"forward: {made.shape} {made.dtype} {made.device}")
    assert made.device.type == "cuda" and made.shape == (4, 3)
    try:
        made.sum().backward()
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        print(f"backward: RuntimeError: {line}")
    else:
        raise SystemExit("backward works now")
words = "hasPrimaryContext expects a valid device index" if torch.version.cuda else "not linked with support for cuda"
assert words in line, line
PYTHON
CUDA_VISIBLE_DEVICES="" "$folder/venv/bin/python" -W ignore "$folder/fake.py"
