"""Set-up of DeepSpeed: configuration, process groups, and its defaults that this project turns off."""

from __future__ import annotations

import inspect
import os
import sys
import weakref
from typing import Any

import torch
from megatron.core import parallel_state

from pretrain.config import OptimSection, ZeroSection
from pretrain.parallel import ParallelLayout
from pretrain.system.light_compiler import nothing_compiled

WHOLE_BUCKET = 2**27  # gradient bucket: elements reduced together, at most
PREFETCHED = 50_000_000  # prefetch: elements of weights, where layers are smaller
NEVER = 2**31
_engines: weakref.WeakSet = weakref.WeakSet()  # to be removed when their process groups end


def start() -> None:
    """Initialize DeepSpeed on the existing process group. Nothing is compiled, and nothing is left in shared memory.

    On a CPU DeepSpeed would build a C++ kernel and map 66 MiB of shared memory a process for an all-reduce that only its
    inference uses.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # zero.Init reads it
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    import deepspeed

    if not torch.cuda.is_available():
        with nothing_compiled():  # a function of an optimizer that no configuration here asks for
            import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.comm.init_distributed(auto_mpi_discovery=False, verbose=False)


def leave() -> None:
    """Reset DeepSpeed's globals: process groups, and its counters of weights and modules, which ranks compare before
    they gather anything.

    Its engines are taken apart: their hooks on gradients are cycles that no garbage collector sees, and a list of modules
    and a cache of a method are global, so that each would keep its process groups, and their threads, for ever.
    """
    for engine in list(_engines):
        engine.destroy()
        for parameter in engine.module.parameters():
            vars(parameter).clear()  # stage 3 registers a dozen hooks on each, which hold the group
    _engines.clear()
    comm = sys.modules.get("deepspeed.comm.comm")
    if comm is not None and comm.cdb is not None:
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK, DeepSpeedZeRoOffload
        from deepspeed.runtime.zero.partition_parameters import Init
        from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

        comm.destroy_process_group()
        vars(comm)["cdb"] = None
        Init.param_id = Init.num_persisted_parameters = Init.num_persisted_elements = 0
        (modules,) = DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
        modules[0] = 0
        FWD_MODULE_STACK.clear()
        cached = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
        inspect.getclosurevars(cached).nonlocals["func"].cache_clear()  # inside of a decorator


class Ranks:
    """megatron-core's process groups behind the interface that DeepSpeed expects; without pipeline stages its model
    parallelism is tensor parallelism."""

    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_tensor_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_src_rank = staticmethod(parallel_state.get_tensor_model_parallel_src_rank)
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)


def settings(
    zero: ZeroSection,
    optim: OptimSection,
    half: bool,
    elements: int,
    parallel: ParallelLayout = ParallelLayout(),
    layer: int = PREFETCHED,
) -> dict:
    """DeepSpeed's configuration; `elements`: weights of a tensor-parallel rank, `layer`: of the largest layer.

    Rows are accumulated by the engine's own loop, and losses come divided by the tokens of the whole step, so DeepSpeed
    divides by nothing but the number of data-parallel ranks. Gradients are summed over rows in float32, and sent in
    float32 too unless `parallel.gradients` says bf16. Stage 3 fetches a layer ahead.
    """
    sent = "bf16" if half and parallel.gradients == "bf16" else "fp32"
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": NEVER,
        "gradient_clipping": optim.clip_grad,
        "communication_data_type": sent,
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": half, "check_grad_overflow": half},  # stages 1 and 2 would apply an infinite gradient
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": zero.stage,
            "reduce_bucket_size": max(1, min(elements, WHOLE_BUCKET)),
            "overlap_comm": parallel.overlap and torch.cuda.is_available(),
            "allgather_bucket_size": max(1, min(elements, WHOLE_BUCKET)),
            "stage3_prefetch_bucket_size": layer,
            "stage3_param_persistence_threshold": zero.param_persistence_threshold,
        },
    }
    if zero.hpz_partition_size:
        made["zero_optimization"]["zero_hpz_partition_size"] = zero.hpz_partition_size
    if zero.offload:
        pinned = torch.cuda.is_available()
        made["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    return made


def wrap(model: torch.nn.Module, optimizer: torch.optim.Optimizer, values: dict):
    """DeepSpeed engine around the model and its optimizer."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.engine import ZERO_OPTIMIZATION, DeepSpeedEngine

    class UniXDeepSpeedEngine(DeepSpeedEngine):
        def _do_optimizer_sanity_check(self, _optimizer) -> str:
            """ZeRO 1 in bf16 uses ZeRO 2's optimizer: ZeRO 1's own would apply an infinite gradient."""
            return ZERO_OPTIMIZATION

    config = DeepSpeedConfig(values, Ranks)
    made = UniXDeepSpeedEngine(
        args=None,
        model=model,
        optimizer=optimizer,
        mpu=Ranks,
        dist_init_required=False,
        config=values,
        config_class=config,
    )
    _engines.add(made)
    return made
