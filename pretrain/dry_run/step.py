"""One rank's training step on FakeTensors: the real engine, with a process group that sends nothing."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from unittest.mock import patch

import numpy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import ModelConfig
from model.vocabulary import IGNORED
from pretrain import runtime
from pretrain.config import TrainConfig
from pretrain.dry_run.watch import Watch
from pretrain.parallel import stages_per_rank
from pretrain.planning.activations import RowShape
from pretrain.row_tensors import Row, assemble
from pretrain.rows import RowSize


@dataclass
class Seen:
    """Measurements of one rank's step; sizes in bytes."""

    rank: int
    static: int  # between steps: weights, gradients, optimizer state
    kept: int  # of the rows under way at the end of a forward pass, at most
    peak: int  # of everything, at most
    peak_phase: str
    at_peak: list[tuple[int, str]]  # the largest tensors then
    reads: dict[str, int]  # times that the host waited for a number
    synchronised: int
    copies: int  # from the host to the device
    flops: int  # of matrix products, attention's left out
    moved: int  # to and from memory, beside matrix products, attention and collectives
    sent: dict[str, int]  # by collective


def planned_row(index: int, model: ModelConfig, row: RowShape, multiple: int) -> Row:
    """Row of the planner: documents of text and one image each; every token but a document's last is a target."""
    vocabulary = model.vocabulary
    text = numpy.full(row.text, vocabulary.eos_id)
    codes = numpy.full(max(row.vision - 1, 0), vocabulary.image_token_offset)
    ids = numpy.concatenate([text, [vocabulary.vision_start_id], codes])[: row.text + row.vision]
    documents = [(ids, numpy.append(ids[1:], IGNORED))] * row.documents
    return assemble(index, documents, vocabulary, RowSize(row.tokens, multiple))


def dry_step(config: TrainConfig, model: ModelConfig, shape: RowShape, ranks: int, rank: int) -> Seen:
    """Build the engine of `config` for one rank of `ranks`, and make two updates, of which the second is measured.

    `pretrain.dry_run.fake_gpu.install` must have been called, and no process group be there.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from model import fused, gpu_kernels, layer_specs, loss
    from pretrain.engines import make_engine

    parallel, layers = config.parallel, config.model.num_hidden_layers
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    new_group = torch.distributed.new_group
    with patch.object(
        torch.distributed, "new_group", lambda *words, **named: new_group(*words, **{**named, "backend": None})
    ):
        runtime.start_distributed(
            config.run.seed, parallel.tensor, parallel.pipeline, stages_per_rank(parallel, layers)
        )
    data_ranks = ranks // (parallel.tensor * parallel.pipeline)
    count = min(config.data.global_batch_size // data_ranks, 2 * parallel.pipeline)
    rows = [planned_row(index, model, shape, config.data.row_multiple) for index in range(count)]
    watch = Watch()
    apply = patch.object(torch.nn.Module, "_apply", _check_nothing_moves)
    gather = patch.object(torch.distributed, "all_gather_object", _all_say_the_same)
    norm = patch.object(
        torch.nn.functional, "rms_norm", lambda x, shape, weight, eps: _KernelNorm.apply(x, weight, watch)
    )
    activation = patch.object(layer_specs, "swiglu", lambda x: _KernelSwiGLU.apply(x, watch))
    attention = patch.object(torch.nn.functional, "scaled_dot_product_attention", _kernel_attention)
    softmax = patch.object(loss, "_in_one_kernel", lambda logits, *_: _kernel_softmax(logits, watch))
    turned, back = (
        patch.object(fused, f"_{name}_in_one_kernel", lambda x, cos, _: _kernel_rotation(x, cos, watch))
        for name in ("turned", "turned_back")
    )
    sums = patch.object(gpu_kernels, "products_add", lambda device: True)
    kernels = (norm, activation, attention, softmax, turned, back, sums)
    with ExitStack() as all_of_it:
        for each in (FakeTensorMode(allow_non_fake_inputs=True), watch.counted(), apply, gather, *kernels):
            all_of_it.enter_context(each)
        engine = make_engine(config, model)
        engine.train_step(rows, config.optim.lr)
        static = watch.now
        watch.reset()
        kept = _watch_forward(engine, watch)
        watch.phase = "forward and backward"
        engine.train_step(rows, config.optim.lr)
    runtime.leave_distributed()
    return Seen(
        rank,
        static,
        max(kept, default=static) - static,
        watch.peak,
        watch.peak_phase,
        watch.at_peak,
        dict(watch.reads),
        watch.synchronised,
        watch.copies["to the device"],
        watch.flops,
        watch.moved,
        dict(watch.sent),
    )


class _KernelNorm(torch.autograd.Function):
    """Memory of torch's CUDA kernel for RMSNorm: a build without CUDA decomposes the norm and keeps more."""

    @staticmethod
    def forward(ctx, x, weight, watch):
        scale = torch.empty_like(x[..., :1], dtype=torch.float32)
        ctx.save_for_backward(x, weight, scale)
        ctx.watch = watch
        watch.moved += 2 * x.nbytes
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, _ = ctx.saved_tensors
        ctx.watch.moved += 3 * x.nbytes
        return torch.empty_like(x), torch.empty_like(weight), None


class _KernelSwiGLU(torch.autograd.Function):
    """Memory of megatron-core's fused SwiGLU, which torch.compile makes one kernel of in each direction."""

    @staticmethod
    def forward(ctx, x, watch):
        ctx.save_for_backward(x)
        ctx.watch = watch
        watch.moved += 3 * x.nbytes // 2
        return torch.empty_like(x[..., : x.shape[-1] // 2])

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        ctx.watch.moved += 5 * x.nbytes // 2
        return torch.empty_like(x), None


def _kernel_softmax(logits, watch):
    """Memory of the head's softmax as torch.compile makes it: read for the sum and for the gradient, and written."""
    watch.moved += 3 * logits.nbytes
    return torch.empty(len(logits), dtype=torch.float32, device=logits.device)


def _kernel_rotation(x, table, watch):
    """Memory of rotary embedding as torch.compile makes it: read and written once, and half of both tables read."""
    watch.moved += 2 * x.nbytes + table.nbytes
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


class _KernelAttention(torch.autograd.Function):
    """Memory of torch's CUDA attention kernel for float32: a build without CUDA materializes all scores and keeps
    them."""

    @staticmethod
    def forward(ctx, query, key, value):
        out, sums = torch.empty_like(query), torch.empty_like(query[..., 0])
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def _kernel_attention(query, key, value, is_causal: bool = False, enable_gqa: bool = False):
    assert is_causal and not enable_gqa, "float32 on a GPU takes keys of every head"
    return _KernelAttention.apply(query, key, value)


def _all_say_the_same(into: list, mine, group=None) -> None:
    into[:] = [mine] * len(into)


def _check_nothing_moves(module: torch.nn.Module, change) -> torch.nn.Module:
    """Replaces `Module._apply` for FakeTensors, which cannot be swapped. Raises RuntimeError if a weight would change
    its dtype or device."""
    for name, parameter in module.named_parameters():
        made = change(parameter.data)
        if (made.dtype, made.device) != (parameter.dtype, parameter.device):
            raise RuntimeError(f"{name} is made as {parameter.dtype} on {parameter.device}, and moved afterwards")
    return module


def _watch_forward(engine, watch: Watch) -> list[int]:
    """Bytes allocated at the end of each forward pass of a stage; the list fills while they run."""
    kept: list[int] = []
    original = engine._forward_step

    def forward_step(rows, module):
        output, loss_function = original(rows, module)

        def loss(output):
            made = loss_function(output)
            kept.append(watch.now)
            return made

        kept.append(watch.now)
        return output, loss

    engine._forward_step = forward_step
    return kept
