"""Parallel ranks of this process: which rows it reads, for which ranks, and whether it reads at all."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config import TrainConfig
from pretrain.engines import ENGINES, named
from pretrain.parallel import stage_layers, stages_per_rank
from pretrain.system.errors import UserError


@dataclass(frozen=True)
class ProcessRanks:
    """Ranks of one process of a run."""

    data_rank: int = 0  # rows start + data_rank, start + data_rank + data_ranks, ... are trained on here
    data_ranks: int = 1
    tensor_rank: int = 0  # rank 0 of a tensor-parallel group reads rows and broadcasts them
    tensor_ranks: int = 1
    routing_only: bool = False  # a stage between the first and the last needs no ids and no labels, so reads no shards


def check_world(config: TrainConfig, processes: int) -> int:
    """Data-parallel size of a run on this many processes. Raises UserError with what does not divide."""
    parallel, data, layers = config.parallel, config.data, config.model.num_hidden_layers
    model_ranks = parallel.tensor * parallel.pipeline
    if processes % model_ranks:
        raise UserError(
            f"{processes} processes cannot hold parallel.tensor {parallel.tensor} x parallel.pipeline "
            f"{parallel.pipeline}: start a multiple of {model_ranks} (torchrun --nproc-per-node), or change the layout"
        )
    ranks = processes // model_ranks
    engine = ENGINES[config.run.engine]
    if engine.check_layout:
        named(engine.check_layout)(config, ranks)
    for key, rows in (
        ("data.global_batch_size", data.global_batch_size),
        ("log.heldout_rows", config.log.heldout_rows),
    ):
        if key == "log.heldout_rows" and not data.heldout:
            continue
        if rows % ranks:
            raise UserError(f"{key} {rows} is not divisible by {ranks} data-parallel ranks: make it a multiple of them")
        if stages_per_rank(parallel, layers) > 1 and (rows // ranks) % parallel.pipeline:
            raise UserError(
                f"{key} {rows} gives each of {ranks} data-parallel ranks {rows // ranks} microbatches: interleaved stages "
                f"need a multiple of {parallel.pipeline}, the pipeline ranks"
            )
    if parallel.sequence and data.row_multiple % parallel.tensor:
        raise UserError(
            f"data.row_multiple {data.row_multiple} is not divisible by {parallel.tensor} tensor-parallel ranks, which "
            "share the tokens of a row: make it a multiple of them"
        )
    stage_layers(parallel.layout, parallel.pipeline, layers)
    return ranks


def check_zero(config: TrainConfig, ranks: int) -> None:
    """Raises UserError for layouts that DeepSpeed's ZeRO does not support."""
    parallel = config.parallel
    if parallel.pipeline > 1 or parallel.layout:
        raise UserError(
            f"run.engine zero3 has no pipeline stages (parallel.pipeline {parallel.pipeline}, parallel.layout "
            f"{parallel.layout!r}): set parallel.tensor instead, or run.engine megatron with parallel.distributed_optimizer"
        )
    zero = config.zero
    if zero.hpz_partition_size and zero.stage != 3:
        raise UserError(
            f"zero.hpz_partition_size {zero.hpz_partition_size} cuts weights a second time, which zero.stage {zero.stage} does not "
            "cut at all: set zero.stage=3, or leave it out"
        )
    if parallel.distributed_optimizer:
        raise UserError(
            "parallel.distributed_optimizer belongs to run.engine megatron: zero3 cuts optimizer state by itself "
            "(zero.stage), so leave it out"
        )
    if zero.hpz_partition_size and ranks % zero.hpz_partition_size:
        raise UserError(
            f"zero.hpz_partition_size {zero.hpz_partition_size} does not divide {ranks} data-parallel ranks: set it to those of a node, or 0"
        )


def process_ranks_here() -> ProcessRanks:
    """Ranks of this process, from megatron-core's groups."""
    from megatron.core import parallel_state

    ends = (
        parallel_state.is_pipeline_first_stage(ignore_virtual=True),
        parallel_state.is_pipeline_last_stage(ignore_virtual=True),
    )
    return ProcessRanks(
        data_rank=parallel_state.get_data_parallel_rank(),
        data_ranks=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_ranks=parallel_state.get_tensor_model_parallel_world_size(),
        routing_only=not any(ends),
    )
