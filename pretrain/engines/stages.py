"""Pipeline stages of this rank, and full weights gathered from all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from model.config import ModelConfig
from model.kernels import training_name
from model.layer_specs import CHEAP
from model.recompute import compute_cheap_parts_again
from model.tensor_shards import join
from model.uni_x import UniXTrainingModel
from pretrain.parallel import ParallelLayout

LAYERS = "decoder.layers."
EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"


def build_stages(model: ModelConfig, transformer: TransformerConfig) -> list[UniXTrainingModel]:
    """Build the stages of this pipeline rank: one, or several with an interleaved schedule."""
    count = transformer.virtual_pipeline_model_parallel_size or 1
    stages = []
    for stage in range(count):
        vp_stage = stage if count > 1 else None
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        stages.append(UniXTrainingModel(model, transformer, pre_process=first, post_process=last, vp_stage=vp_stage))
    return stages


def this_device() -> torch.device:
    """Device of this process. torch numbers GPUs; the CPU stand-in of `pretrain.runtime` names the device itself."""
    found: int | torch.device = torch.cuda.current_device()
    return torch.device("cuda", found) if isinstance(found, int) else found


def save_memory(stages: Sequence[UniXTrainingModel], parallel: ParallelLayout) -> None:
    """Apply the layout's activation recomputation beyond megatron-core's own."""
    if parallel.recompute_cheap:
        for stage in stages:
            for layer in stage.decoder.layers:
                compute_cheap_parts_again(layer, CHEAP)


def held_weights(stages: Sequence[UniXTrainingModel]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield (training name, parameter) of this rank; layers are numbered over the whole model.

    The last stage's copy of a tied embedding has the embedding's name.
    """
    for stage in stages:
        for name, parameter in stage.named_parameters():
            if name.startswith(LAYERS):
                local, rest = name[len(LAYERS) :].split(".", 1)
                name = f"{LAYERS}{stage.decoder.layers[int(local)].layer_number - 1}.{rest}"
            elif name == HEAD and stage.share_embeddings_and_output_weights:
                name = EMBEDDING
            yield training_name(name), parameter


def whole_weights(stages: Sequence[UniXTrainingModel]) -> Iterator[tuple[str, Tensor]]:
    """Yield (training name, full tensor on the CPU) of every weight, on every rank. A collective: all ranks call it.

    A weight is gathered over its tensor-parallel group, then handed to the other pipeline ranks, one at a time.
    """
    pipeline, tensor = (
        parallel_state.get_pipeline_model_parallel_group(),
        parallel_state.get_tensor_model_parallel_group(),
    )
    held = dict(held_weights(stages))
    shapes = {name: (tuple(parameter.shape), parameter.dtype) for name, parameter in held.items()}
    everywhere: list[dict] = [{}] * pipeline.size()
    torch.distributed.all_gather_object(everywhere, shapes, group=pipeline)
    done = set()
    for stage, names in enumerate(everywhere):
        source = torch.distributed.get_global_rank(pipeline, stage)
        for name, (shape, dtype) in names.items():
            if name in done:
                continue  # a tied embedding, held by two stages
            done.add(name)
            if pipeline.rank() == stage:
                part = held[name].detach().contiguous()
            else:
                part = torch.empty(shape, dtype=dtype, device=torch.cuda.current_device())
            if pipeline.size() > 1:
                torch.distributed.broadcast(part, source, group=pipeline)
            parts = [part]
            if tensor.size() > 1:
                parts = [torch.empty_like(part) for _ in range(tensor.size())]
                torch.distributed.all_gather(parts, part, group=tensor)
            yield name, join(name, parts).to("cpu")
