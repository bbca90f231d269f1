#!/usr/bin/env bash
# torch 2.13.0 on a CPU, one thread: a picture of up to 20,480 numbers alone (64 channels of 17 x 17, say) is convolved by
# aten::_slow_conv2d_forward, two such pictures by oneDNN. The two add up in another order, so the first picture of a batch of two is not
# what it is alone; torch.use_deterministic_algorithms(True) says nothing of it, since each is deterministic. Larger pictures take oneDNN both
# ways, and are equal here. Where codes, hashes or cached features must not depend on what else was in the batch, this is where
# they do: the deep layers of an encoder fall below the border even for pictures of 128 px. Without oneDNN
# (torch.backends.mkldnn.flags(enabled=False)) both take the slow kernel, and are equal.
#
# Output seen, 2026-11-29 (the differences depend on the CPU, whether there is one does not):
#   64 x 17 x 17 (18,496): alone _slow_conv2d_forward, two mkldnn_convolution, equal False; without oneDNN equal True
#   64 x 18 x 18 (20,736): alone mkldnn_convolution, two mkldnn_convolution; without oneDNN equal True
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/seen.py" <<'PYTHON'
import torch
from torch.profiler import ProfilerActivity, profile

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
torch.manual_seed(0)
weight = torch.randn(64, 64, 3, 3)


def convolved(pictures):
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as watched:
        made = torch.conv2d(pictures, weight, padding=1)
    names = [event.key for event in watched.key_averages() if "slow_conv" in event.key or "mkldnn_conv" in event.key]
    return made[0], names[0].removeprefix("aten::")


for side, kernels in ((17, ("_slow_conv2d_forward", "mkldnn_convolution")), (18, ("mkldnn_convolution",) * 2)):
    pictures = torch.randn(2, 64, side, side)
    alone, first = convolved(pictures[:1])
    together, second = convolved(pictures)
    with torch.backends.mkldnn.flags(enabled=False):
        same = torch.equal(convolved(pictures[:1])[0], convolved(pictures)[0])
    equal = f", equal {torch.equal(alone, together)}" if first != second else ""
    print(f"64 x {side} x {side} ({64 * side**2:,}): alone {first}, two {second}{equal}; without oneDNN equal {same}")
    assert (first, second) == kernels and same
    assert first == second or (not torch.equal(alone, together) and torch.allclose(alone, together, atol=1e-3))
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" -W ignore "$folder/seen.py" 2> /dev/null
