"""What the processes of `tests.parallel_world` are asked to do."""

from __future__ import annotations

import dataclasses
import os
from unittest.mock import patch

import torch
from megatron.core.tensor_parallel import layers
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from model import gpu_kernels
from model.config import ModelConfig
from model.vocabulary import IGNORED
from pretrain import runtime
from pretrain.config import OptimSection
from pretrain.engines import StepFigures, finite
from pretrain.engines.megatron import MegatronEngine
from pretrain.parallel import ParallelLayout, stages_per_rank
from pretrain.row_tensors import Row
from tests.model.tiny_hf import document
from tests.model.tiny_training import row_of, training_config

TOKENS, MULTIPLE, STEPS, ROWS = 64, 4, 8, 4
TRAINED = (
    2  # steps that a test compares, each with a row of every kind: the second reads weights and moments of the first
)
TEXT = [5, 9, 33, 2, 47, 3, 60, 71, 8, 8, 12] * 3
OPTIM = OptimSection(lr=1e-3, weight_decay=0.1, clip_grad=1.0, eps=1e-5)  # eps: Adam turns noise into steps where a
# gradient is near zero, in any layout


def mixed_rows(config: ModelConfig) -> list[Row]:
    """STEPS * ROWS rows: text only, pictures only, several documents, and other counts in every row."""
    rows = []
    for index in range(STEPS * ROWS):
        kind = index % 4
        if kind == 0:
            documents = [[(token + index) % 80 for token in TEXT[: 20 + index % 12]]]
        elif kind == 1:
            documents = [document([5 + index % 3], index), document([3 + index % 4, 9], index + 1)]
        elif kind == 2:
            documents = [document([0, 12 + index % 5], index), document([0, 9], index + 2)]  # nothing before a picture
        else:
            documents = [document([30 + index % 9, 5], index), TEXT[:7]]
        row = row_of(documents, config, TOKENS, MULTIPLE)
        row.index = index
        if kind == 3:  # a prompt: labels that count as nothing
            row.labels[row.targets[:3]] = IGNORED
            row.targets = row.targets[3:]
        rows.append(row)
    return rows


def make_engine(
    changes: dict, parallel: ParallelLayout, optim: OptimSection = OPTIM, precision: str = "fp32"
) -> MegatronEngine:
    """An engine of a tiny model on all processes of this job."""
    config = training_config(initializer_range=0.2, **changes)
    per_rank = stages_per_rank(parallel, config.num_hidden_layers)
    runtime.start_distributed(0, parallel.tensor, parallel.pipeline, per_rank)
    return MegatronEngine(config, optim, precision, TOKENS, 0, parallel)


def numbers(figures: StepFigures) -> tuple:
    """All but the time that the step took."""
    return tuple(getattr(figures, one.name) for one in dataclasses.fields(figures) if one.compare)


def rows_here(rows: list[Row]) -> list[Row]:
    """The rows of this data-parallel rank, dealt as the training loop deals them."""
    from megatron.core import parallel_state

    return rows[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]


def train(
    changes: dict,
    parallel: ParallelLayout,
    optim: OptimSection = OPTIM,
    steps: int = TRAINED,
    precision: str = "fp32",
    drawn_before: int = 0,
) -> tuple:
    """(figures of each step, figures of a measurement at the end, final whole weights).

    drawn_before: numbers that were drawn at random before the first step, as a resumed run has drawn fewer.
    """
    engine = make_engine(changes, parallel, optim, precision)
    torch.rand(drawn_before)
    with get_cuda_rng_tracker().fork():  # megatron-core's own generator
        torch.rand(drawn_before)
    return train_with(engine, optim, steps)


def train_adding_in_products(parallel: ParallelLayout, optim: OptimSection = OPTIM) -> tuple:
    """(`train` in bfloat16 where linear layers add their weights' gradients themselves, by the operations of a CPU; how often
    they began a sum)."""
    calls = 0
    by_themselves = gpu_kernels.WeightGradients.wgrad_gemm_accum_fp32

    def counted(given, gradient, total):
        nonlocal calls
        if hasattr(total, "overwritten"):
            calls += 1
            total.fill_(torch.nan)  # it is not read
        by_themselves(given, gradient, total)

    with (
        patch.object(gpu_kernels, "weight_gradients_add", _weight_gradients_add),
        patch.object(gpu_kernels.WeightGradients, "wgrad_gemm_accum_fp32", staticmethod(counted)),
        patch.object(gpu_kernels.WeightGradients, "wgrad_gemm_accum_fp16", staticmethod(counted)),
    ):
        return train({}, parallel, optim, precision="bf16"), calls


def _weight_gradients_add(_device, _sums) -> bool:
    vars(layers).update(fused_weight_gradient_mlp_cuda=gpu_kernels.WeightGradients, _grad_accum_fusion_available=True)
    return True


def train_with(engine, optim: OptimSection = OPTIM, steps: int = TRAINED) -> tuple:
    """The same for any engine."""
    rows = mixed_rows(engine.model_config)
    figures = []
    for step in range(steps):
        batch = rows_here(rows[step * ROWS : (step + 1) * ROWS])
        figures.append(numbers(engine.train_step(batch, optim.lr)))
    measured = numbers(engine.evaluate(rows_here(rows[:ROWS])))
    return figures, measured, {name: tensor.clone() for name, tensor in engine.weights()}


def written_boxes(changes: dict, parallel: ParallelLayout, precision: str = "fp32") -> list[tuple]:
    """(key, shape of the whole, offsets, shape) of each box that this rank writes to a checkpoint."""
    return places_of(make_engine(changes, parallel, precision=precision))


def places_of(engine) -> list[tuple]:
    """The same for any engine."""
    return [(box.key, box.shape, box.offsets, tuple(box.tensor.shape)) for box in engine.boxes()]


def threads_of_a_model(parallel: ParallelLayout) -> int:
    """Threads of this process before a job that makes groups, and a model that trains in them."""
    before = len(os.listdir("/proc/self/task"))
    train({}, parallel, steps=1)
    return before


def hang(duration: float) -> None:
    """Longer than a job may take."""
    import time

    time.sleep(duration)


def fail_on_the_last_rank() -> int:
    """An error of one rank alone."""
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        raise ValueError("the last rank has failed")
    return torch.distributed.get_rank()


def train_on_text_beside_pictures(parallel: ParallelLayout, steps: int = TRAINED) -> tuple:
    """As `train`, on rows whose first halves, dealt to the even data-parallel ranks, hold text only; the others pictures.
    Gradients come back too.
    """
    engine = make_engine({}, parallel)
    found = train_with_text_beside_pictures(engine, steps)
    return *found, [parameter.main_grad.clone() for stage in engine.stages for parameter in stage.parameters()]


def train_with_text_beside_pictures(engine, steps: int = TRAINED) -> tuple:
    """The same for any engine, without gradients."""
    rows = mixed_rows(engine.model_config)
    text, pictures = rows[0::4], rows[1::4]
    assert all(not engine.model_config.vocabulary.is_code(row.labels).any() for row in text)
    assert all(engine.model_config.vocabulary.is_code(row.labels).sum() > 5 for row in pictures)
    figures = []
    for step in range(steps):
        batch = [row for pair in zip(text[2 * step : 2 * step + 2], pictures[2 * step : 2 * step + 2]) for row in pair]
        figures.append(numbers(engine.train_step(rows_here(batch), OPTIM.lr)))
    return figures, figures[-1], {name: tensor.clone() for name, tensor in engine.weights()}


def train_past_a_bad_step(engine, parameters: list, kind: str, steps: int = TRAINED) -> tuple:
    """Train 1 step, meet a step that is no good, and train on -> (its figures, the others', pieces by key and place).

    kind: "none" leaves the bad step out; "refused" is one that `sound` says no to; "gradient" has an infinity in one
    gradient of the last rank, and losses that nobody sees anything in.
    """
    rows = mixed_rows(engine.model_config)
    figures, bad = [], None
    for step in range(steps):
        batch = rows_here(rows[step * ROWS : (step + 1) * ROWS])
        if step == 1 and kind != "none":
            sound, hook = finite, None
            if kind == "refused":
                sound = refuse
            elif torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
                hook = parameters[3].register_hook(lambda gradient: gradient.clone().fill_(torch.inf))
            other = rows_here(rows[-ROWS:])
            bad = numbers(engine.train_step(other, OPTIM.lr, sound))
            if hook:
                hook.remove()
        figures.append(numbers(engine.train_step(batch, OPTIM.lr)))
    return bad, figures, {(box.key, box.offsets): box.tensor.clone() for box in engine.boxes()}


def refuse(_figures) -> bool:
    """No step is good enough."""
    return False


def train_megatron_past_a_bad_step(parallel: ParallelLayout, precision: str, kind: str) -> tuple:
    """With the megatron engine."""
    engine = make_engine({}, parallel, precision=precision)
    parameters = [parameter for stage in engine.stages for parameter in stage.parameters()]
    return train_past_a_bad_step(engine, parameters, kind)


def head_of_a_rank(hidden, weight, labels, factors, at_once: int):
    """(losses, this rank's share of the gradient of hidden, gradient of its rows of the weight)."""
    from model.loss import weighted_loss

    ranks = torch.distributed.get_world_size()
    runtime.start_distributed(0, tensor=ranks)
    rows = weight.chunk(ranks)[torch.distributed.get_rank()].clone().requires_grad_()
    hidden = hidden.clone().requires_grad_()
    total, losses = weighted_loss(hidden, rows, labels, factors, at_once)
    return losses, *torch.autograd.grad(total, (hidden, rows))


def train_in_buckets(changes: dict, parallel: ParallelLayout, elements: int, precision: str = "fp32") -> tuple:
    """As `train`, with gradients in buckets of so many elements, and twice as many rows in the second step -> (what `train`
    returns, buckets, sums sent in each step, whether the stored pieces were the weights of the last update)."""
    from unittest.mock import patch

    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as Group

    from pretrain.engines import megatron

    with patch.object(megatron, "bucket_elements", lambda _ranks: elements):
        engine = make_engine(changes, parallel, precision=precision)
    sent, begin = [0], Group.start_grad_sync

    def counted(group, *words, **named):
        sent[-1] += 1
        return begin(group, *words, **named)

    rows, figures = mixed_rows(engine.model_config), []
    with patch.object(Group, "start_grad_sync", counted):
        for batch in (rows[:ROWS], rows[ROWS : 3 * ROWS]):
            figures.append(numbers(engine.train_step(rows_here(batch), OPTIM.lr)))
            sent.append(0)
    stored = [box.tensor.clone() for box in engine.boxes() if not box.key.startswith("optimizer.")]
    measured = numbers(engine.evaluate(rows_here(rows[:ROWS])))
    again = [box.tensor for box in engine.boxes() if not box.key.startswith("optimizer.")]
    fresh = all(torch.equal(one, other) for one, other in zip(stored, again, strict=True))
    weights = {name: tensor.clone() for name, tensor in engine.weights()}
    groups = [group for module in engine.modules for group in module.bucket_groups]
    return (figures, measured, weights), len(groups), sent[:-1], fresh
