"""Compiled pictures where CPUs of several kinds share torch's cache of compiled code, as the nodes of a cluster may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
DOUBLED = """
import sys, torch
from torch._dynamo.utils import counters
from model.hf.generation_uni_x import own_vectors
x = torch.arange(1.0, 129.0)
twice = torch.compile(lambda x: 2 * x + 1, fullgraph=True, dynamic=False, options=own_vectors() or None)
print(torch.equal(twice(x), 2 * x + 1), counters["inductor"]["fxgraph_cache_hit"])
"""


def doubled(cache: Path, **environment: str) -> str:
    """What a process with this cache says: whether compiled code is right, and how often it came from the cache."""
    values = {**os.environ, **environment, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", DOUBLED], cwd=ROOT, env=values, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_compiled_code_of_another_cpu_is_not_taken(tmp_path: Path):
    """torch 2.13 takes it, and with AVX2 on what AVX-512 has left half of the numbers are wrong."""
    own = torch.backends.cpu.get_cpu_capability()
    other = "avx2" if own == "AVX512" else "default"
    assert doubled(tmp_path) == "True 0"
    assert doubled(tmp_path) == "True 1"  # the same kind of CPU has it from there
    assert doubled(tmp_path, ATEN_CPU_CAPABILITY=other) == f"True {0 if own in ('AVX512', 'AVX2') else 1}"
