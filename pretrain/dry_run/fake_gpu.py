"""Fake CUDA devices for FakeTensor programs on a machine without a GPU. Call `install` before torch is imported."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pretrain.system.errors import UserError

GUARD = Path(__file__).with_name("guard.cpp")


def install() -> None:
    """Load the device guard, then megatron-core with its device calls meaning device 0.

    Raises UserError where there is no compiler for the guard.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already: the guard comes too late")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a login node may have one, which does not matter here
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    libraries = Path(spec.origin).parent / "lib"
    guard = _compiled(libraries.parent)
    for name in ("libtorch_cpu.so", "libtorch_cuda.so"):
        if (libraries / name).exists():
            ctypes.CDLL(str(libraries / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(guard))
    import torch

    from pretrain import runtime

    runtime.install(torch.device("cuda", 0))


def _compiled(torch_folder: Path) -> Path:
    """Build the guard as a library, cached for the user; rebuilt when its source or torch changes."""
    version = (torch_folder / "version.py").read_bytes()
    name = f"fake-gpu-{hashlib.sha256(GUARD.read_bytes() + version).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uni-x"
    made = folder / name
    if made.exists():
        return made
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise UserError("a dry run compiles 50 lines of C++ once: install g++")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        words = [
            compiler,
            "-O0",
            "-std=c++20",
            "-shared",
            "-fPIC",
            f"-I{torch_folder / 'include'}",
            str(GUARD),
            "-o",
            f"{scratch}/{name}",
            f"-L{torch_folder / 'lib'}",
            "-lc10",
            "-ltorch_cpu",
        ]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{GUARD.name} does not compile with {compiler}: {done.stderr.strip().splitlines()[0]}")
        os.replace(f"{scratch}/{name}", made)
    return made
