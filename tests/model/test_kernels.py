"""Which kernels a layer is made of, under which names, and what is said where they are not there or do not load."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp

from model.attention import DocumentAttention
from model.kernels import FUSED, NAMES, Kernels, check_installed, check_loads, in_use, kernels_of, training_name
from model.layer_specs import FP8, RMSNorm, SwiGLU, branch_submodules, feed_forward_parts, transformer_config
from model.weight_names import IN_LAYER
from pretrain.system.errors import UserError
from tests.commands import ROOT
from tests.model.tiny_training import training_config


class NormAndColumn:
    """Stands for a norm that is part of a product, in specs, which name classes and make none."""


def test_torchs_kernels_are_always_there():
    assert kernels_of("torch") == Kernels(RMSNorm, ColumnParallelLinear, RowParallelLinear, DocumentAttention, SwiGLU)
    check_installed("torch")
    check_loads("torch")
    with pytest.raises(ValueError, match="flash"):
        kernels_of("flash")


@pytest.mark.parametrize("shared_norm", [False, True])
def test_a_norm_goes_into_the_product_behind_it_unless_two_read_it(shared_norm):
    kernels = Kernels(RMSNorm, ColumnParallelLinear, RowParallelLinear, DocumentAttention, SwiGLU, NormAndColumn)
    made = branch_submodules(training_config(), kernels, one_norm_for_two=shared_norm)
    assert made.input_layernorm is IdentityOp and made.self_attention.submodules.linear_qkv is NormAndColumn
    second = (made.pre_mlp_layernorm, feed_forward_parts(made).linear_fc1)
    assert second == ((RMSNorm, ColumnParallelLinear) if shared_norm else (IdentityOp, NormAndColumn))


def test_fused_weights_have_the_names_of_those_apart():
    """Every fused name stands for a weight that checkpoints know; all others stay as they are."""
    assert set(FUSED.values()) <= set(IN_LAYER)
    for name in IN_LAYER:
        for place in ("decoder.layers.3.", "decoder.layers.0.text.", "decoder.layers.11.vision."):
            assert training_name(place + name) == place + name
            fused = {apart: fused for fused, apart in FUSED.items()}.get(name)
            if fused:
                assert training_name(place + fused) == place + name
    assert training_name("embedding.word_embeddings.weight") == "embedding.word_embeddings.weight"


@pytest.mark.parametrize("fp8", FP8)
@pytest.mark.parametrize("kernels", NAMES)
def test_megatron_core_takes_the_settings_of_every_choice(kernels, fp8):
    made = transformer_config(training_config(), kernels=kernels, fp8=fp8, bf16=True, params_dtype=torch.bfloat16)
    assert made.transformer_impl == ("local" if kernels == "torch" else kernels)
    assert bool(made.fp8) == (fp8 != "none")


def test_a_run_says_what_it_computes_with():
    plain = torch.optim.AdamW([torch.zeros(2, requires_grad=True)], fused=True)
    line = in_use("transformer_engine", "delayed", plain, "one call")
    assert line.startswith(
        "kernels: transformer_engine, FP8 (delayed scaling) but for the head; optimizer: torch's AdamW, fused"
    )
    assert line.endswith("norm of the gradient: one call")
    assert "FP8" not in in_use("torch", "none", plain, "one call")


def run_with(package: str | None, tmp_path, program: str) -> subprocess.CompletedProcess:
    """A program in a process whose transformer_engine is this package, or none; torch believes in a GPU there if asked."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if package is not None:
        folder = tmp_path / "transformer_engine"
        (folder / "pytorch").mkdir(parents=True)
        (folder / "__init__.py").write_text(package)
        (folder / "pytorch" / "__init__.py").write_text("")
        environment["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT
    )


BROKEN = "raise OSError('libtransformer_engine.so: undefined symbol: cublasLtX\\nand more')"


def test_what_is_installed_and_does_not_load_is_one_line(tmp_path):
    program = (
        "from model import kernels; print(kernels.unloadable()); kernels.check_installed('transformer_engine')\n"
        "try: kernels.check_loads('transformer_engine')\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = run_with(BROKEN, tmp_path, program)
    first, second = done.stdout.splitlines()
    assert first == "OSError: libtransformer_engine.so: undefined symbol: cublasLtX"
    assert second.startswith(
        "UserError run.kernels is transformer_engine, which does not load (OSError: libtransformer_engine.so"
    )


def test_megatron_core_goes_on_without_what_does_not_load(tmp_path):
    """It imports transformer-engine itself, and expects an ImportError alone."""
    program = (
        "from model.kernels import unloadable; from pretrain.system.light_imports import import_megatron\n"
        "import_megatron(unloadable(), sharded=True)\n"
        "from megatron.core.optimizer import Adam; print(Adam.__module__)"
    )
    done = run_with(BROKEN, tmp_path, program)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "transformer-engine is installed and does not load (OSError: lib" in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("torch.optim")


def test_no_empty_variable_sends_it_over_the_whole_file_system(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setenv("CUDNN_PATH", "/opt/cudnn")
    package = "import os; print(os.environ.get('CUDA_HOME'), os.environ.get('CUDNN_PATH'))"
    done = run_with(package, tmp_path, "from model import kernels; assert not kernels.unloadable()")
    assert (done.returncode, done.stdout) == (0, "None /opt/cudnn\n"), done.stderr


def test_without_a_gpu_nothing_of_it_is_asked(tmp_path):
    program = "from pretrain import runtime; runtime.install(); from megatron.core.optimizer import Adam; print(Adam.__module__)"
    done = run_with("raise SystemExit(9)", tmp_path, program)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("torch.optim"), done.stderr[-2000:]


def test_what_is_not_installed_is_refused_before_torch_is_imported():
    with pytest.raises(UserError, match="not installed: requirements-gpu.txt"):
        check_installed("transformer_engine")
