"""Parallel layout: tensor, pipeline and data parallelism, checked, and translated to megatron-core's settings."""

from __future__ import annotations

import re
from dataclasses import dataclass

from model.config import ModelConfig
from pretrain.system.errors import UserError


@dataclass(frozen=True)
class ParallelLayout:
    """Tensor and pipeline parallelism of a model; data parallelism takes the remaining processes."""

    tensor: int = 1  # tensor-parallel size
    sequence: bool = False  # sequence parallelism between the matrix products
    pipeline: int = 1  # pipeline-parallel size
    layout: str = (
        ""  # layers of each stage, as in "Ett|tttt|ttL" ("": even); twice the stages: interleaved, two per rank
    )
    distributed_optimizer: bool = False  # distributed optimizer: optimizer state is sharded over data-parallel ranks
    recompute: bool = False  # full activation recomputation of layers
    recompute_cheap: bool = (
        False  # selective recomputation of norms and activation functions, which costs little and saves a good part
    )
    overlap: bool = True  # gradient reduction beside the backward pass, parameter gathering beside the next forward
    gradients: str = (
        "fp32"  # dtype of gradient accumulation and reduction (bf16: half the bytes; with run.precision bf16)
    )


BUCKET = 40_000_000  # gradient bucket size in elements


def bucket_elements(data_ranks: int) -> int:
    """Minimum elements of a gradient bucket with overlap: every rank sends a million or more at a time."""
    return max(BUCKET, 1_000_000 * data_ranks)


def stage_layers(layout: str, pipeline: int, layers: int) -> list[str]:
    """Stages of a layout string, as in ["Ett", "tttt", "ttL"]: E is the embedding, t a layer, L norm and LM head.

    "" stands for even stages, the first ones taking what does not divide. Repeats are written as megatron-core has them,
    t*3 and (tt|)*2. A rank has as many stages as there are stages for each of `pipeline` ranks. Raises UserError.
    """
    if not layout:
        counts = [layers // pipeline + (stage < layers % pipeline) for stage in range(pipeline)]
        layout = "E" + "|".join("t" * count for count in counts) + "L"
    written = layout.replace(",", "").replace(" ", "")
    for pattern in (r"\(([^()]+)\)\*(\d+)", r"([^|])\*(\d+)"):
        written = re.sub(pattern, lambda found: found.group(1) * int(found.group(2)), written)
    stages = written.split("|")
    if not re.fullmatch(r"E[t|]*L", written):
        raise UserError(
            f"pipeline layout {layout!r}: write E, then layers t in stages cut by |, then L, as in Ett|tttt|ttL"
        )
    if written.count("t") != layers:
        raise UserError(f"pipeline layout {layout!r} has {written.count('t')} layers: the model has {layers}")
    if pipeline == 1 and len(stages) > 1:
        raise UserError(f"pipeline layout {layout!r} has {len(stages)} stages for one pipeline rank: leave it out")
    if len(stages) % pipeline:
        raise UserError(
            f"pipeline layout {layout!r} has {len(stages)} stages: each of the {pipeline} ranks must have equally many"
        )
    return stages


def stages_per_rank(parallel: ParallelLayout, layers: int) -> int:
    """Stages per pipeline rank; more than one are interleaved."""
    return len(stage_layers(parallel.layout, parallel.pipeline, layers)) // parallel.pipeline


def check_layout(parallel: ParallelLayout, model: ModelConfig) -> None:
    """Raises UserError for a model that cannot be split in this way, with the numbers that do not divide."""
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        if getattr(model, name) % parallel.tensor:
            raise UserError(
                f"{name} {getattr(model, name)} is not divisible by {parallel.tensor} tensor-parallel ranks"
            )
    if parallel.sequence and parallel.tensor == 1:
        raise UserError("sequence parallelism needs at least 2 tensor-parallel ranks: it shares tokens over them")
    if parallel.recompute and parallel.recompute_cheap:
        raise UserError(
            "parallel.recompute computes whole layers again, what parallel.recompute_cheap names included: take one"
        )
    stage_layers(parallel.layout, parallel.pipeline, model.num_hidden_layers)


def megatron_settings(parallel: ParallelLayout, layers: int) -> dict:
    """Arguments of megatron-core's TransformerConfig for the layout."""
    settings: dict[str, int | str] = {
        "tensor_model_parallel_size": parallel.tensor,
        "sequence_parallel": parallel.sequence,
        "pipeline_model_parallel_size": parallel.pipeline,
    }
    if parallel.recompute:
        settings |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if parallel.pipeline > 1:
        settings["batch_p2p_sync"] = False  # synchronizing after each exchange is for old versions of torch
        settings["pipeline_model_parallel_layout"] = "|".join(stage_layers(parallel.layout, parallel.pipeline, layers))
        per_rank = stages_per_rank(parallel, layers)
        if per_rank > 1:
            settings["virtual_pipeline_model_parallel_size"] = per_rank
            # With two ranks both directions have one peer, and unordered sends get mixed: losses are
            # then wrong without an error.
            settings |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    return settings
