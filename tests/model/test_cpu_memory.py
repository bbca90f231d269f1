"""Memory that was freed is used again, and not mapped again: counted in page faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import resource, sys
from pretrain.system.cpu_memory import keep_freed_memory, return_freed_memory
if sys.argv[1] != "leave":
    assert keep_freed_memory() and keep_freed_memory()
if sys.argv[1] == "return":
    assert return_freed_memory()
block = b"x" * (32 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    copy = bytearray(block)
    del copy
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode], cwd=root, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_kept_until_it_is_to_be_returned():
    kept, left, returned = (page_faults(mode) for mode in ("keep", "leave", "return"))
    assert kept < 0.25 * min(left, returned)
