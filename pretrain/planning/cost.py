"""Cost model of a step: compute of each stage, memory traffic, the pipeline bubble, and communication.

Estimates that rank layouts. FLOPs are counted (pretrain/flops.py), and so is memory traffic beside matrix products
(pretrain/planning/passes.py); the achieved shares of device and link rates are assumed, see `Devices`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.config import ModelConfig
from pretrain.flops import BACKWARD, layer_weights, row_flops
from pretrain.parallel import ParallelLayout, bucket_elements
from pretrain.planning import passes
from pretrain.planning.activations import RowShape
from pretrain.planning.memory import PipelineStage, StaticBytes, gradient_width
from pretrain.system.errors import UserError


@dataclass(frozen=True)
class Devices:
    """Device figures: an H100's data sheet, and achieved shares of it. docs/parallel.md has the source of each
    number."""

    flops: float = 989e12  # FLOP/s, dense bf16; data sheet
    products: float = 0.55  # share of it that matrix products reach: 0.80 alone, 0.5 and more in published runs
    attention: float = (
        0.25  # share of it that attention's kernel reaches, its backward pass counted as 2.5 forward passes
    )
    memory: float = 2.8e12  # bytes/s; 3.35e12 by the data sheet, of which a copy reaches about 90 %
    utilisation: float = 0.0  # share of `flops` that all compute and its memory traffic reach together (0: counted)
    within: float = 300e9  # bytes/s from a device to others of its node, one direction
    between: float = 40e9  # bytes/s from a device to other nodes
    contention: float = 0.2  # slowdown of compute by overlapped communication, which takes multiprocessors
    per_node: int = 8


ATTENTION_BACKWARD = 2.5  # scores are recomputed, then four products instead of the forward pass's two


@dataclass(frozen=True)
class PartCosts:
    """Seconds of one device per part of the model, forward and backward on one row, without recomputation."""

    layers: dict[str, float]  # by kind
    embedding: float
    head: float
    cheap: float = 0.0  # of norms and activation functions of a layer, forward
    # By kind: more for weight gradients that are added after the matrix product and not in it.
    apart: dict[str, float] = field(default_factory=dict)
    shared: float = 0.0  # more of the head's softmax where ranks share the vocabulary
    begun: dict[str, float] = field(default_factory=dict)  # by kind, bytes: `passes.begun_bytes`

    def of(self, config: ModelConfig, stage: PipelineStage, parallel: ParallelLayout = ParallelLayout()) -> float:
        """Seconds of a stage; recomputed layers run forward twice."""
        layers = sum(self.layers[kind] for kind in stage.kinds(config)) * (4 / 3 if parallel.recompute else 1)
        if parallel.recompute_cheap:
            layers += self.cheap * stage.layers + sum(self.apart.get(kind, 0.0) for kind in stage.kinds(config))
        head = self.head + self.shared * (parallel.tensor > 1)
        return layers + self.embedding * stage.embedding + head * stage.head


def one_layer_flops(config: ModelConfig, row: RowShape, kind: str) -> float:
    """Forward FLOPs of one layer of this kind on one row; padding has projections, but next to no attention."""
    one = ModelConfig.from_dict({**config.to_dict(), "num_hidden_layers": 1, "layer_kinds": [kind]})
    lengths = {
        "document": [row.text + row.vision] * row.documents,
        "text": [row.text] * row.documents,
        "vision": [row.vision] * row.documents,
    }
    padding = row.tokens - sum(lengths["document"])
    return row_flops(one, lengths, targets=0).forward + 2 * layer_weights(config) * padding


def counted_costs(
    config: ModelConfig, row: RowShape, devices: Devices, half: bool = True, in_product: bool = True, sums: int = 4
) -> PartCosts:
    """Costs from FLOPs and bytes; every token is a target. in_product: matrix products add to the gradients, of `sums`
    bytes."""
    head = 2 * config.hidden_size * config.vocab_size * row.tokens
    kinds, width = set(config.layer_kinds), 2 if half else 4
    if devices.utilisation:
        speed = devices.flops * devices.utilisation
        layers = {kind: (1 + BACKWARD) * one_layer_flops(config, row, kind) / speed for kind in kinds}
        return PartCosts(
            layers,
            embedding=0.0,
            head=(1 + BACKWARD) * head / speed,
            cheap=passes.cheap_bytes(config, row, width) / devices.memory,
        )
    speed, products = devices.flops * devices.products, 2 * layer_weights(config) * row.tokens
    layers, apart = {}, {}
    for kind in kinds:
        attention = one_layer_flops(config, row, kind) - products
        layers[kind] = (
            (1 + BACKWARD) * products / speed
            + (1 + ATTENTION_BACKWARD) * attention / (devices.flops * devices.attention)
            + passes.layer_bytes(config, row, kind, width, in_product, sums) / devices.memory
        )
        added = (passes.layer_bytes(config, row, kind, width, where, sums) for where in (False, in_product))
        apart[kind] = (next(added) - next(added)) / devices.memory
    return PartCosts(
        layers,
        embedding=passes.embedding_bytes(config, row, width, sums) / devices.memory,
        head=(1 + BACKWARD) * head / speed + passes.head_bytes(config, row, width, sums) / devices.memory,
        cheap=passes.cheap_bytes(config, row, width) / devices.memory,
        apart=apart,
        shared=passes.shared_softmax_bytes(config, row, width) / devices.memory,
        begun={kind: passes.begun_bytes(config, kind, sums) for kind in kinds} if half and in_product else {},
    )


def measured_costs(file: Path, config: ModelConfig, counted: PartCosts) -> PartCosts:
    """Costs from the last case of a tools/bench_step.py --json measurement: the ratios of the parts are measured, their
    sum over the model is that of `counted`, so that a CPU's measurement serves to plan GPUs. Raises UserError."""
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
        was = figures["model_config"]
        seconds = figures["cases"][-1]["models"]["uni_x"]["part_seconds"]
        layers = {kind: seconds[kind] / was["layer_kinds"].count(kind) for kind in set(was["layer_kinds"])}
        raw = PartCosts(layers, seconds["embedding"], seconds["head"] + seconds.get("loss", 0.0))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        reason = error.__class__.__name__
        raise UserError(f"{file}: cannot be read ({reason}): give a file of tools/bench_step.py --json") from None
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    different = [name for name in sizes if was.get(name) != getattr(config, name)]
    if different or not set(config.layer_kinds) <= set(layers):
        name = different[0] if different else "layer_kinds"
        raise UserError(
            f"{file}: measured another model ({name} {was.get(name)}, the configuration has {getattr(config, name)}): "
            "measure this one, as with tools/bench_step.py --model 3b"
        )
    whole = PipelineStage(0, config.num_hidden_layers, True, True)
    factor = counted.of(config, whole) / raw.of(config, whole)
    layers = {kind: factor * each for kind, each in layers.items()}
    return replace(counted, layers=layers, embedding=factor * raw.embedding, head=factor * raw.head)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the critical path, by cause, and the bytes that the busiest device sends."""

    compute: float  # mean compute of a stage
    bubble: float  # mean waiting of a stage (bubble)
    tensor: float  # tensor-parallel collectives
    pipeline: float  # hidden states and their gradients between stages
    data: float  # exposed gradient reduction, and parameter gathering with the distributed optimizer
    update: float  # the optimizer reading and writing its state
    sent: float  # bytes
    hidden: float = 0.0  # seconds of overlapped communication, which costs only contention

    @property
    def total(self) -> float:
        """Total seconds."""
        return self.compute + self.bubble + self.tensor + self.pipeline + self.data + self.update


def tensor_bytes(
    config: ModelConfig, stage: PipelineStage, row: RowShape, parallel: ParallelLayout, width: int
) -> float:
    """Bytes that a rank sends to its tensor-parallel group for one row.

    Two all-reduces forward and two backward a layer (and two again where it is recomputed), each of 2 (t - 1) / t of
    the row's activations; with sequence parallelism the same bytes in reduce-scatters and all-gathers, and a gather
    each way where the order of tokens changes.
    """
    share = (parallel.tensor - 1) / parallel.tensor
    activation = row.tokens * config.hidden_size * width
    passes = (6 if parallel.recompute else 4) * 2 * stage.layers + 2 * (stage.embedding + stage.head)
    if parallel.sequence:
        kinds = config.layer_kinds[max(stage.first - 1, 0) : stage.first + stage.layers]
        passes += 2 * sum(here != before for before, here in zip(kinds, kinds[1:]))
    return passes * share * activation


def step_time(
    config: ModelConfig,
    stages: Sequence[PipelineStage],
    static: Sequence[StaticBytes],
    row: RowShape,
    parallel: ParallelLayout,
    data_ranks: int,
    microbatches: int,
    costs: PartCosts,
    devices: Devices,
    half: bool,
) -> StepTime:
    """Step time of a 1F1B pipeline: the slowest stage for every microbatch, the others for one.

    Ranks of a tensor-parallel group are neighbours, then those of a data-parallel group, then stages, as megatron-core
    numbers them. What is hidden: see `exposed`; tensor-parallel and pipeline sends are not.
    """
    tensor, width = parallel.tensor, 2 if half else 4
    computed = [costs.of(config, stage, parallel) / tensor for stage in stages]
    if tensor > 1 and not parallel.sequence:  # every rank computes norms and sums for all tokens
        again = passes.PASSES * row.tokens * config.hidden_size * width / devices.memory * (tensor - 1) / tensor
        computed = [seconds + stage.layers * again for seconds, stage in zip(computed, stages)]
    sent_tensor = [tensor_bytes(config, stage, row, parallel, width) for stage in stages]
    slots = [seconds + sent / devices.within for seconds, sent in zip(computed, sent_tensor)]
    in_sum = 0 if parallel.recompute_cheap else 1
    begun = [in_sum * sum(costs.begun.get(kind, 0.0) for kind in stage.kinds(config)) / tensor for stage in stages]
    # the first row of each stage does not read them
    path = (microbatches - 1) * max(slots) + sum(slots) - min(begun) / devices.memory
    compute = (microbatches * sum(computed) - sum(begun) / devices.memory) / len(stages)
    collectives = microbatches * sum(sent_tensor) / len(stages) / devices.within
    along = row.tokens // tensor if parallel.sequence else row.tokens
    hidden = along * config.hidden_size * width
    one_node = tensor * data_ranks * len(stages) <= devices.per_node
    link = devices.within if one_node else devices.between
    crossings = 2 * (microbatches + len(stages) - 2) if len(stages) > 1 else 0
    held = max(each.parameters for each in static)
    ring = (data_ranks - 1) / data_ranks
    summed = gradient_width(parallel, half)
    sums = ring * held * summed * (1 if parallel.distributed_optimizer else 2)
    gathers = ring * held * width if parallel.distributed_optimizer else 0
    members = max(1, devices.per_node // tensor)  # of one data-parallel group in a node, each with its own link
    apart = tensor * data_ranks > devices.per_node
    data_link = min(devices.within, members * devices.between) if apart else devices.within
    sums_left = gathers_left = 1.0
    if parallel.overlap and data_ranks > 1 and len(stages) == 1:
        last = max(bucket_elements(data_ranks), config.vocab_size * config.hidden_size // tensor) / held
        sums_left = exposed(sums / data_link, last, BACKWARD / (1 + BACKWARD) * max(slots))
        gathers_left = exposed(gathers / data_link, last, max(slots) / (1 + BACKWARD))
    data = (sums * sums_left + gathers * gathers_left) / data_link
    beside = (sums + gathers) / data_link - data
    swept = max(passes.update_bytes(each, parallel, data_ranks, half, kept) for each, kept in zip(static, begun))
    copies = config.tie_word_embeddings and len(stages) > 1  # of the embedding, whose gradients are summed
    tied = 4 * 2 * config.vocab_size // tensor * config.hidden_size if copies else 0
    return StepTime(
        compute=compute + devices.contention * beside,
        bubble=max(0.0, path - compute - collectives),
        tensor=collectives,
        pipeline=crossings * hidden / link,
        data=data + tied / link,
        update=swept / devices.memory,
        sent=microbatches * (max(sent_tensor) + (2 * hidden if len(stages) > 1 else 0)) + sums + gathers + tied,
        hidden=beside,
    )


def exposed(seconds: float, last: float, window: float) -> float:
    """Exposed share of communication of so many seconds: what exceeds `window` seconds of compute, and at least the
    last bucket, which nothing hides (the embedding's, a `last` share of all).

    The window is one row's: gradients are sent after the last row only, weights gathered before the first. Sends of
    pipelines are counted whole: megatron-core sends those of later stages at once, and the first stage ends last.
    """
    return max(last, 1 - window / seconds) if seconds > 0 else 0.0
