#!/usr/bin/env bash
# torch 2.13.0, CPU build: torch.compile's cache on disk that two kinds of x86 processor share, as on a cluster whose nodes
# differ and whose cache folder (TORCHINDUCTOR_CACHE_DIR) is on a file system of all.
#
# A function is compiled with AVX-512 into an empty cache, then called in a new process that has AVX2 alone (here the same
# processor, told so by ATEN_CPU_CAPABILITY=avx2). The second one takes the C++ program of the first from the cache, whose
# loops advance by 16 numbers, and builds it for vectors of 8: half of the numbers of `2 * x + 1` are never computed. No
# error, no warning, and the cache counts a hit. With a cache of its own, or TORCHINDUCTOR_FX_GRAPH_CACHE=0, it is right:
#
#   2 * x + 1   512 of 1,024 numbers wrong
#   softmax     nearly all of 1,024 wrong
#   sum         wrong
#
# So each kind of processor needs a cache folder of its own. Other mixtures of processors were not only wrong, they ended
# the process.
# Needs a processor with AVX-512 and a C++ compiler.
set -euo pipefail
grep -q avx512f /proc/cpuinfo || { echo "not run: this processor has no AVX-512"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3
cat > "$folder/compiled.py" <<'PY'
import sys

import torch
from torch._dynamo.utils import counters

x = torch.arange(1.0, 1025.0)
cases = {"2 * x + 1": lambda x: 2 * x + 1, "softmax": lambda x: torch.softmax(x / 100, 0), "sum": lambda x: (x / 8).sum()}
for name, function in cases.items():
    torch._dynamo.reset()
    counters.clear()
    found, right = torch.compile(function)(x), function(x)
    wrong = (~torch.isclose(found, right, rtol=1e-4, atol=1e-6)).sum().item()
    hits = counters["inductor"]["fxgraph_cache_hit"]
    print(f"  {name}: {wrong} of {right.numel()} wrong, {hits} from the cache")
PY
compiled() { TORCHINDUCTOR_CACHE_DIR="$folder/$1" OMP_NUM_THREADS=1 "${@:2}" "$folder/venv/bin/python" "$folder/compiled.py" 2>&1; }
AVX2="env ATEN_CPU_CAPABILITY=avx2"
{
  echo "AVX-512, empty cache"; compiled one env
  echo "AVX2 on the cache of AVX-512"; compiled one $AVX2
  echo "AVX2 on it, without the cache of graphs"; compiled one $AVX2 TORCHINDUCTOR_FX_GRAPH_CACHE=0
  echo "AVX2, empty cache"; compiled two $AVX2
} | tee "$folder/said"
# by case: the first and third process and the last one are right, the second one wrong in all three
found=$(awk '/ wrong, / { printf "%s ", /: 0 of/ ? "right" : "wrong" }' "$folder/said")
[ "$found" = "right right right wrong wrong wrong right right right right right right " ] || { echo "changed: $found"; exit 1; }
echo "as described above"
