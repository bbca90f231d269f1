"""The stand-ins that make `torch.cuda` mean the CPU, above all the two that could go missing silently."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import types

import pytest
import torch
from megatron.core import jit, parallel_state, tensor_parallel
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.tensor_parallel import random

from pretrain import engines, runtime
from pretrain.parallel import ParallelLayout
from tests.commands import ROOT
from tests.pretrain import parallel_jobs
from tests.pretrain.test_engine import engine_of, rows_of, training_config

CPU = torch.device("cpu")


def test_installing_again_changes_nothing():
    before = (torch.zeros, torch.Tensor.type, torch.cuda.current_device, torch.compile)
    assert runtime.install() is True
    assert before == (torch.zeros, torch.Tensor.type, torch.cuda.current_device, torch.compile)


def test_nothing_is_installed_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(runtime, "_installed", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime, "_replace_device_calls", lambda _torch: pytest.fail("installed over a GPU"))
    assert runtime.install() is False


def test_device_calls_mean_the_cpu():
    assert torch.cuda.current_device() == CPU
    torch.cuda.synchronize()
    stream = torch.cuda.current_stream()
    stream.wait_stream(torch.cuda.current_stream())
    stream.synchronize()
    tensor, module = torch.ones(2), torch.nn.Linear(2, 2)
    assert tensor.cuda() is tensor and tensor.cuda(0, non_blocking=True) is tensor
    assert module.cuda() is module and module.weight.device == CPU


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")], ids=str)
def test_factories_asked_for_the_gpu_allocate_on_the_cpu(device):
    like = torch.ones(2)
    made = [
        torch.zeros(2, device=device),
        torch.ones(2, device=device),
        torch.empty(2, device=device),
        torch.full((2,), 3.0, device=device),
        torch.tensor([1.0, 2.0], device=device),
        torch.arange(2, device=device),
        torch.rand(2, device=device),
        torch.randn(2, device=device),
        torch.zeros_like(like, device=device),
        torch.empty_like(like, device=device),
    ]
    assert all(tensor.device == CPU and tensor.shape == (2,) for tensor in made)
    assert torch.zeros(2, device="meta").device.type == "meta"


def test_type_names_are_those_that_optimizers_sort_by():
    tensor = torch.ones(2)
    assert tensor.type() == "torch.cuda.FloatTensor"
    assert tensor.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert tensor.type(torch.float16).dtype == torch.float16
    assert tensor.type("torch.cuda.DoubleTensor").dtype == torch.float64


def test_fused_operations_are_not_compiled_and_torch_compile_is_itself():
    def function():
        pass

    assert jit.jit_fuser(function) is function
    assert not hasattr(fused_bias_swiglu.swiglu, "_torchdynamo_orig_callable")
    assert torch.compile.__module__.startswith("torch")


def test_kernels_of_experts_are_replaced_where_there_is_no_triton():
    """megatron-core 0.19 takes them at import; 0.16 has no such module, and is not disturbed by the stand-in."""
    name = "megatron.core.transformer.moe.ops.paged_stash"
    replaced = getattr(sys.modules.get(name), "paged_stash_copy_kernel", "real or absent") is None
    assert replaced == (importlib.util.find_spec("triton") is None)
    assert "triton" not in sys.modules or not replaced


LOGIN_NODE = """
import torch
torch.version.cuda, torch.cuda._is_compiled = "13.0", lambda: True  # as in a CUDA build, beside nvcc and without a GPU
torch.cuda.is_available = lambda: False
from pretrain import engines, runtime
runtime.install()
import torch.utils.cpp_extension as extensions
assert extensions.CUDA_HOME == "/opt/cuda"
"""


def test_a_cuda_build_on_a_node_without_a_gpu_says_nothing():
    environment = {**os.environ, "CUDA_HOME": "/opt/cuda"}
    done = subprocess.run([sys.executable, "-c", LOGIN_NODE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def drawn(tracker, name: str, times: int = 2) -> list[torch.Tensor]:
    numbers = []
    for _ in range(times):
        with tracker.fork(name):
            numbers.append(torch.nn.functional.dropout(torch.ones(32), 0.5))
    return numbers


def expected(seed: int, times: int = 2) -> list[torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [torch.nn.functional.dropout(torch.ones(32), 0.5) for _ in range(times)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_stream_is_a_function_of_its_seed():
    """Fails without the stand-in for `torch.cuda.manual_seed`: streams would start wherever the generator stands."""
    tracker = random.CudaRNGStatesTracker()
    for position, (name, seed) in enumerate([("a", 11), ("b", 12)]):
        torch.manual_seed(position)
        tracker.add(name, seed)
    assert same(drawn(tracker, "a"), expected(11)) and same(drawn(tracker, "b"), expected(12))
    assert not same(expected(11), expected(12))


def test_a_forked_stream_is_its_own_and_leaves_the_other_alone():
    """Fails without the stand-in for `_set_cuda_rng_state`: a fork would go on with the numbers of the outer stream."""
    tracker = random.CudaRNGStatesTracker()
    tracker.add("a", 11)
    torch.manual_seed(5)
    outside = torch.rand(4), torch.rand(4)
    torch.manual_seed(5)
    first = torch.rand(4)
    inside = drawn(tracker, "a")
    assert torch.equal(first, outside[0]) and torch.equal(torch.rand(4), outside[1])
    assert same(inside, expected(11))


def test_recomputed_dropout_is_the_same_dropout():
    """Activation recompute puts the streams back with these calls before it runs a layer again."""
    runtime.start_distributed(4)
    tracker = random.get_cuda_rng_tracker()
    states, outer = tracker.get_states(), torch.cuda.get_rng_state()
    with tracker.fork():
        first = torch.rand(8)
    second = torch.rand(8)
    tracker.set_states(states)
    torch.cuda.set_rng_state(outer)
    with tracker.fork():
        assert torch.equal(torch.rand(8), first)
    assert torch.equal(torch.rand(8), second)


def test_the_one_generator_is_not_reported_as_a_fault(caplog):
    caplog.set_level(logging.WARNING)
    tracker = random.CudaRNGStatesTracker()
    tracker.add("a", 1)
    drawn(tracker, "a")
    assert not caplog.records


def test_a_process_that_nothing_launched_is_a_world_of_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    runtime.start_distributed(0)
    runtime.start_distributed(0)
    assert torch.distributed.get_world_size() == 1 and torch.distributed.get_backend() == "gloo"
    assert parallel_state.get_tensor_model_parallel_world_size() == 1
    assert parallel_state.get_pipeline_model_parallel_world_size() == 1


def test_groups_are_kept_for_the_same_layout_and_refused_for_another():
    runtime.start_distributed(0)
    group = parallel_state.get_data_parallel_group()
    runtime.start_distributed(1)
    assert parallel_state.get_data_parallel_group() is group
    with pytest.raises(ValueError, match="leave them first"):
        runtime.start_distributed(0, tensor=2)


def test_leaving_gives_every_thread_back(world):
    """Threads of forgotten groups took 70 % of the machine after some hundred of them."""
    layouts = [{"tensor": 2}, {"tensor": 2}, {"pipeline": 2}, {"distributed_optimizer": True}, {"tensor": 2}]
    job = parallel_jobs.threads_of_a_model  # each counts what the ones before it left
    _, *left = (world.run(job, 2, parallel=ParallelLayout(**layout)) for layout in layouts)
    assert left == [left[0]] * len(left)


def test_the_seed_decides_the_streams():
    streams = []
    for seed in (1, 1, 2):
        runtime.start_distributed(seed)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            streams.append(torch.rand(4))
    assert torch.equal(streams[0], streams[1]) and not torch.equal(streams[0], streams[2])


def test_deterministic_kernels_change_nothing_on_a_cpu(monkeypatch):
    """What the documentation says of run.deterministic; variables of the environment are put back."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NVTE_ALLOW_NONDETERMINISTIC_ALGO"):
        monkeypatch.setenv(name, "")
    config = training_config()
    rows = rows_of(config)
    found = []
    try:
        for deterministic in (False, True):
            if deterministic:
                runtime.use_deterministic_kernels()
            engine = engine_of(config)
            figures = [engine.train_step(rows, 0.01) for _ in range(3)]
            found.append((figures, dict(engine.weights())))
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[0][0] == found[1][0]
    assert all(torch.equal(weight, found[1][1][name]) for name, weight in found[0][1].items())


def test_leaving_the_groups_closes_the_engines_that_were_imported(monkeypatch):
    """By their entries: another engine names its own function, and one that nothing imported is not asked."""
    closed: list[str] = []
    here = types.ModuleType("an_engine_of_mine")
    here.let_go = lambda: closed.append("mine")
    monkeypatch.setitem(sys.modules, here.__name__, here)
    kind = engines.EngineKind("an_engine_of_mine", close="an_engine_of_mine:let_go")
    absent = engines.EngineKind("not_imported", close="not_imported:let_go")
    monkeypatch.setattr(engines, "ENGINES", {**engines.ENGINES, "mine": kind, "absent": absent})
    engines.close_engines()
    assert closed == ["mine"]
