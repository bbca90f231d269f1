"""CPU stand-ins for megatron-core's CUDA calls, process groups and deterministic kernels. The stand-ins do nothing on a
GPU.

megatron-core calls `torch.cuda` directly in its schedules, buffers, clipping and random-number code. `install()` makes
those calls mean the CPU. It must run before megatron is imported: entry points and the tests' conftest call it, no
library module does. Each stand-in below says what breaks without it; two of them break silently.
"""

from __future__ import annotations

import datetime
import functools
import gc
import importlib.util
import logging
import os
import sys
import types
import warnings

from model.kernels import unloadable
from pretrain.launch import launched_processes
from pretrain.system.cpu_memory import keep_freed_memory
from pretrain.system.light_compiler import nothing_compiled
from pretrain.system.light_imports import NOT_INSTALLED, import_megatron, leave_torchvision_out

_installed = False


class _Stream:
    """Stands for `torch.cuda.current_stream()`, which gradient reduction asks for even without overlap."""

    def wait_stream(self, _other) -> None:
        """Nothing runs beside the one CPU stream."""

    def synchronize(self) -> None:
        """Nothing is pending."""


def install(pretended=None) -> bool:
    """Install the stand-ins once -> True on a CPU, False on a machine with a GPU.

    pretended: a torch.device of a GPU that is not there, whose tensors hold nothing (see `pretrain.dry_run`).
    """
    global _installed
    import torch

    leave_torchvision_out()
    _keep_libraries_quiet()
    if torch.cuda.is_available():
        import_megatron(unloadable(), sharded=True)
        return False
    if not _installed:
        _installed = True
        for name in (
            "transformer_engine",
            "apex",
        ):  # megatron-core would use their optimizers, whose kernels need a GPU
            sys.modules.setdefault(name, NOT_INSTALLED)
        keep_freed_memory()
        _replace_device_calls(torch, pretended or torch.device("cpu"))
        if pretended is None:
            _replace_factories(torch)
            _replace_type_names(torch)
        _replace_triton_kernels()
        _import_megatron_without_compiling()
        _replace_random_state(torch)
    return True


@functools.cache  # a logger would get its filters again at each call
def _keep_libraries_quiet() -> None:
    """Silence what libraries say on every start, to no purpose here.

    - megatron-core: without transformer-engine and apex it warns at a dozen places; the layer specs use torch's classes for
      everything that these would replace, and a line of the run says which optimizer it is. With 0.19 the distributed
      optimizer's layout is made where it always was.
    - torch 2.13: former names of collectives, which megatron-core and DeepSpeed call.
    - A CUDA build of torch without a GPU: "No CUDA runtime is found, using CUDA_HOME=...", when extensions are looked for that
      might be compiled. Nothing is.
    """
    warnings.filterwarnings("ignore", module=r"megatron\.")
    former = ".*all_gather_into_tensor|.*reduce_scatter_tensor"
    warnings.filterwarnings("ignore", category=FutureWarning, message=former)
    _drop_lines("torch.utils.cpp_extension", "No CUDA runtime is found")
    _drop_lines("megatron.core.distributed.distributed_data_parallel", "full_param_layout not provided")


def _drop_lines(logger: str, words: str) -> None:
    """Drop the lines of a logger that have these words."""
    logging.getLogger(logger).addFilter(lambda record: words not in record.getMessage())


def _replace_device_calls(torch, device) -> None:
    torch.cuda.current_device = lambda: device  # almost every allocation of megatron-core names it as its device
    torch.cuda.synchronize = lambda *_: None
    stream = _Stream()
    torch.cuda.current_stream = lambda *_: stream
    torch.Tensor.cuda = lambda self, *_, **__: self.to(device)  # tied embeddings, data; modules move by it too


def _replace_factories(torch) -> None:
    """Let `torch.zeros(..., device="cuda")` and the like allocate on the CPU: token counters, norms, found-inf
    flags."""

    def on_cpu(factory):
        @functools.wraps(factory)
        def make(*args, **kwargs):
            if str(kwargs.get("device", "")).startswith("cuda"):
                kwargs["device"] = "cpu"
            return factory(*args, **kwargs)

        return make

    for name in ("zeros", "ones", "empty", "full", "tensor", "arange", "rand", "randn", "zeros_like", "empty_like"):
        setattr(torch, name, on_cpu(getattr(torch, name)))


def _replace_type_names(torch) -> None:
    """Names of CUDA tensor types for CPU tensors: optimizers sort parameters by `tensor.type()`."""
    original = torch.Tensor.type

    @functools.wraps(original)
    def type_name(self, dtype=None, *args, **kwargs):
        if dtype is None:
            return original(self).replace("torch.", "torch.cuda.", 1)
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.")
        return original(self, dtype, *args, **kwargs)

    torch.Tensor.type = type_name


def _replace_triton_kernels() -> None:
    """Stub for triton, which megatron-core 0.19 imports for MoE kernels in any case; torch for CPUs comes without it.

    Not triton itself is replaced: torch looks for that too, and asks more of it.
    """
    if importlib.util.find_spec("triton") is None:
        kernels = types.ModuleType("megatron.core.transformer.moe.ops.paged_stash")
        names = ("GLOBAL_BLOCK_SIZE", "paged_stash_copy_kernel", "paged_stash_pop_kernel")
        vars(kernels).update(dict.fromkeys(names))
        sys.modules[kernels.__name__] = kernels


def _import_megatron_without_compiling() -> None:
    """Import megatron-core without torch.compile: its fused operations bind it at import, and on a CPU compiling costs
    more than it saves."""
    with nothing_compiled():
        import_megatron(unloadable(), sharded=False)


def _replace_random_state(torch) -> None:
    """Map the GPU's random state to the CPU's. Without this dropout would use wrong random numbers, with no error."""
    from megatron.core.tensor_parallel import random

    torch.cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    torch.cuda.manual_seed = torch.manual_seed
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # "CPU RNG state changed within GPU RNG context" applies to every use here: there is one generator for both.
    logging.getLogger(random.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


def use_deterministic_kernels() -> None:
    """Deterministic kernels only; an operation without one raises RuntimeError. Call before the first use of a GPU.

    Attention's backward is the one that differs without this: its blocks add to the same gradients in the order in which
    they finish. cuBLAS needs the workspace, NCCL a choice of algorithm that does not depend on what it measures.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    os.environ.setdefault("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")  # transformer-engine's attention
    torch.use_deterministic_algorithms(True)
    # nothing here reads uninitialized memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of its class
    torch.backends.cudnn.benchmark = False


def settle_devices(tensor: int) -> None:
    """Set environment variables that CUDA and torch read before their first use, unless the user has.

    Memory in segments that grow: rows and chunks differ in size, and without it fragments take some gigabytes. One queue
    of work for a device, where tensor-parallel ranks share matrices: megatron-core starts a sum before the product that
    hides it, and with several queues the product may come first.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if tensor > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def start_distributed(
    seed: int, tensor: int = 1, pipeline: int = 1, stages_per_rank: int = 1, timeout: float = 1800.0
) -> None:
    """Initialize the process group (NCCL with a GPU, gloo without) and megatron-core's groups; a single process if not
    launched.

    torchrun and srun wrappers set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without them the world is this process.
    timeout: seconds that a process waits for the others in a collective before it fails.
    Called again with the same layout, it keeps the groups and seeds anew; for another layout `leave_distributed` first.
    """
    import torch
    from megatron.core import parallel_state, tensor_parallel

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if launched_processes() > 1:
            torch.distributed.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
        else:
            torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    interleaved = stages_per_rank if stages_per_rank > 1 else None
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            virtual_pipeline_model_parallel_size=interleaved,
        )
    there = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_virtual_pipeline_model_parallel_world_size(),
    )
    if there != (tensor, pipeline, interleaved):
        raise ValueError(
            f"the groups are those of layout {there}, not {(tensor, pipeline, interleaved)}: leave them first"
        )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def leave_distributed() -> None:
    """Destroy every process group. gloo has three threads per group, which wake up even when idle."""
    import torch
    from megatron.core import parallel_state

    engines = sys.modules.get("pretrain.engines")
    if engines is not None:
        engines.close_engines()
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.collect()  # models and optimizers are reference cycles that hold process groups
