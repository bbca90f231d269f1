"""What the processes of `tests.parallel_world` are asked to measure, to hold the planner against."""

from __future__ import annotations

from unittest.mock import patch

import torch

from model.config import ModelConfig
from pretrain import runtime
from pretrain.config import OptimSection, ZeroSection
from pretrain.engines import megatron
from pretrain.engines.megatron import MegatronEngine
from pretrain.parallel import ParallelLayout, bucket_elements
from tests.model.tiny_training import training_config
from tests.pretrain import zero3_jobs
from tests.pretrain.parallel_jobs import mixed_rows, rows_here
from tools.benchmarks.cases import long_row
from tools.benchmarks.memory import SavedWatch


def bytes_of(tensors) -> int:
    """Bytes of memory behind tensors, each storage once: a view counts with all that it keeps alive."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def place() -> tuple[int, int]:
    """(pipeline stage, data-parallel rank) of this process."""
    from megatron.core import parallel_state

    return parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_data_parallel_rank()


def held_bytes(changes: dict, parallel: ParallelLayout, precision: str, bucket: int = 0) -> dict[str, object]:
    """What this rank holds after a training step: parameters (elements), and bytes of weights, gradients, optimizer.

    bucket: elements of gradients that are sent together (0: as ever).
    """
    config = training_config(**changes)
    runtime.start_distributed(0, parallel.tensor, parallel.pipeline)
    with patch.object(megatron, "bucket_elements", lambda ranks: bucket or bucket_elements(ranks)):
        engine = MegatronEngine(config, OptimSection(lr=1e-3), precision, 64, 0, parallel)
    engine.train_step(rows_here(mixed_rows(config)[:4]), 1e-3)
    weights = [parameter for stage in engine.stages for parameter in stage.parameters()]
    own = {parameter.untyped_storage().data_ptr() for parameter in weights}
    states = []
    for inner in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer]):
        if getattr(inner, "is_stub_optimizer", False):
            continue
        states += [main for group in inner.optimizer.param_groups for main in group["params"]]
        states += [value for state in inner.optimizer.state.values() for value in state.values() if value.dim()]
    return {
        "place": place(),
        "parameters": sum(parameter.numel() for parameter in weights),
        "weights": bytes_of(weights),
        "gradients": bytes_of(parameter.main_grad for parameter in weights),
        "optimizer": bytes_of(state for state in states if state.untyped_storage().data_ptr() not in own),
    }


def saved_bytes(config: ModelConfig, parallel: ParallelLayout, precision: str, tokens: int) -> tuple[int, int]:
    """(pipeline stage, bytes that autograd keeps here of one document of `tokens`, each storage once)."""
    runtime.start_distributed(0, parallel.tensor, parallel.pipeline)
    engine = MegatronEngine(config, OptimSection(lr=1e-3), precision, tokens, 0, parallel)
    (model,) = engine.stages
    saved, forward_step = SavedWatch(model), engine._forward_step

    def watched(rows, module):
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            return forward_step(rows, module)

    engine._forward_step = watched
    engine._run([long_row(config, tokens).row], forward_only=False)
    return place()[0], saved.bytes


def gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """What DeepSpeed's stages 1 and 2 sum up of a weight: an attribute of its own where training is in bf16."""
    return parameter.grad if (summed := getattr(parameter, "grad_accum", None)) is None else summed


def zero_held_bytes(changes: dict, parallel: ParallelLayout, zero: ZeroSection, precision: str) -> dict[str, int]:
    """What this rank holds under ZeRO after a training step: bytes of weights, gradients (of stage 3 in one buffer; of the
    others what is there between two rows) and optimizer, and ranks of data parallelism."""
    engine = zero3_jobs.make_engine(changes, parallel, zero, OptimSection(lr=1e-3), precision)
    inner, weights, gradients = engine.engine.optimizer, [], []
    backward = engine.engine.backward

    def watched(loss):
        gradients.extend(each for parameter in engine.names if (each := gradient_of(parameter)) is not None)
        backward(loss)

    engine.engine.backward = watched
    engine.train_step(rows_here(mixed_rows(engine.model_config)[: 2 * engine.group.size()]), 1e-3)  # two on each rank
    if zero.stage == 3:
        for parameter in engine.names:
            weights += [parameter.ds_tensor.data, *([parameter.data] if parameter.ds_persist else [])]
        gradients, main = [inner.grad_partitions_flat_buffer], inner.fp32_partitioned_groups_flat
    else:
        weights, main = list(inner.bit16_groups_flat), inner.single_partition_of_fp32_groups
    moments = [tensor for state in engine.adam.state.values() for key, tensor in state.items() if key != "step"]
    return {
        "weights": bytes_of(weights),
        "gradients": bytes_of(gradients),
        "optimizer": bytes_of([*moments, *(each.data for each in main)]),
        "ranks": engine.group.size(),
    }
