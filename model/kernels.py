"""Kernel choice: torch's modules or transformer-engine's, through the same megatron-core specs.

Only `kernels_of` decides: layers call it with the value of `run.kernels`. Names, shapes and meaning of weights are the same
with either (`training_name`), and so are checkpoints.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass

from pretrain.system.errors import UserError

TORCH, TRANSFORMER_ENGINE = "torch", "transformer_engine"
NAMES = (TORCH, TRANSFORMER_ENGINE)
WIDEST_HEAD = 256  # of attention in transformer-engine, as in torch's varlen kernel; both want multiples of 8
FP8_MULTIPLE = 16  # tokens of a matrix product in FP8

FOLDERS = [f"{library}_{word}" for library in ("CUDA", "CUDNN", "NVRTC", "CURAND") for word in ("HOME", "PATH")]

FUSED = {  # a norm that is part of the matrix product behind it -> the name that it has by itself
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


@dataclass(frozen=True)
class Kernels:
    """Classes for the parts of a transformer layer; `norm` None: the linear layer behind it includes the norm."""

    norm: type
    column: type
    row: type
    attention: type
    activation: type
    norm_and_column: type | None = None


def kernels_of(name: str) -> Kernels:
    """Classes for `run.kernels`. Raises ImportError where transformer-engine's cannot be loaded; see `check_loads`."""
    if name == TRANSFORMER_ENGINE:
        from model.te_kernels import transformer_engine_kernels

        return transformer_engine_kernels()
    if name != TORCH:
        raise ValueError(f"kernels {name!r} are not known: {' and '.join(NAMES)} are")
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

    from model.attention import DocumentAttention
    from model.layer_specs import RMSNorm, SwiGLU

    return Kernels(RMSNorm, ColumnParallelLinear, RowParallelLinear, DocumentAttention, SwiGLU)


def training_name(name: str) -> str:
    """Parameter name of a module -> its name in checkpoints, which does not depend on the kernels."""
    for fused, apart in FUSED.items():
        if name.endswith(fused):
            return name.removesuffix(fused) + apart
    return name


def check_installed(name: str) -> None:
    """Raises UserError for kernels that are not installed, before torch is imported."""
    if name != TORCH and importlib.util.find_spec(TRANSFORMER_ENGINE) is None:
        raise UserError(
            f"run.kernels is {name}, which is not installed: requirements-gpu.txt says how, or set run.kernels=torch"
        )


def check_loads(name: str) -> None:
    """Raises UserError where these kernels do not load or have no GPU, before megatron-core is imported."""
    if name == TORCH:
        return
    import torch

    if why := unloadable():
        raise UserError(
            f"run.kernels is {name}, which does not load ({why}): install the versions of requirements-gpu.txt, or "
            "set run.kernels=torch"
        )
    if not torch.cuda.is_available():
        raise UserError(f"run.kernels is {name}, which needs a GPU, and torch finds none: set run.kernels=torch")


def unloadable() -> str:
    """Why an installed transformer-engine cannot be used with this torch, in a line; "" where it can or is absent.

    Its core library is linked against one version of cuBLAS and looks for cuDNN: what is missing is an OSError or a
    RuntimeError, of which megatron-core, which imports it wherever it is installed, expects none. It looks for libraries below
    the folders that these variables name: below an empty one that would be the whole file system.
    """
    if importlib.util.find_spec(TRANSFORMER_ENGINE) is None:
        return ""
    for name in FOLDERS:
        if os.environ.get(name) == "":
            del os.environ[name]
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # any error of another package's import
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else 'without a word'}"
    return ""


def in_use(name: str, fp8: str, optimizer, gradient_norm: str) -> str:
    """Kernels and optimizer of a run, in a line. optimizer: the torch optimizer inside the engine's; gradient_norm: how the
    engine computes the norm."""
    made_by = type(optimizer).__module__.split(".")[0]
    fused = ", fused" if any(group.get("fused") for group in optimizer.param_groups) else ""
    products = f"{name}, FP8 ({fp8} scaling) but for the head" if fp8 != "none" else name
    return (
        f"kernels: {products}; optimizer: {made_by}'s {type(optimizer).__name__}{fused}; norm of the gradient: "
        f"{gradient_norm}"
    )
