"""Chunked next-token cross-entropy over the joint vocabulary: the full logits are never materialized.

torch's own `linear_cross_entropy` works in chunks too, but rounds the losses of a bfloat16 head to bfloat16 (steps of 0.03
at a loss of 8); here the softmax is float32 whatever the head is. With tensor parallelism each rank has the logits of
its rows of the vocabulary.
"""

from __future__ import annotations

import torch
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from model.gpu_kernels import OneKernel, add_product
from model.vocabulary import IGNORED

LOGITS_AT_ONCE = (
    9 * 2**26
)  # elements of [tokens, vocab / tp] that may exist at a time: 1.1 GiB in bfloat16. The sum of the weight's
# gradient is gone over once for each such part, which with small ones takes longer than the softmax; the 3B has three.
SOFTMAX_AT_ONCE = (
    2**25
)  # elements of them that are float32 at a time, where the softmax is not one kernel: 128 MiB, and
# as much for their logarithms
LOGITS_AT_ONCE_CPU = 2**21  # what processors keep in their caches
CHECKPOINTED_AT_ONCE = 2**26  # where autograd makes the gradients, in float32


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, at_once: int = CHECKPOINTED_AT_ONCE) -> Tensor:
    """Loss of each token: hidden [tokens, h], weight [vocab / tp, h], labels [tokens] -> loss [tokens] in float32, 0
    where it is ignored.

    For gradients of any of the losses: chunks of logits are dropped, and computed again in the backward pass. With
    tensor parallelism ignored labels are not looked for: every token must have a target.
    """
    size = max(1, at_once // weight.shape[0])
    if len(hidden) <= size:
        return _losses(hidden, weight, labels)
    chunks = zip(hidden.split(size), labels.split(size))
    return torch.cat([checkpoint(_losses, part, weight, target, use_reentrant=False) for part, target in chunks])


def _losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight).float()
    if _vocabulary_group() is not None:
        return tensor_parallel.vocab_parallel_cross_entropy(logits, labels)
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")


def _vocabulary_group():
    """Ranks that share the vocabulary (vocabulary parallelism), or None where each has all of it."""
    if not parallel_state.model_parallel_is_initialized():
        return None
    group = parallel_state.get_tensor_model_parallel_group()
    return group if group.size() > 1 else None


def weighted_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, factors: Tensor | None = None, at_once: int = 0
) -> tuple[Tensor, Tensor]:
    """hidden [tokens, h], weight [vocab / tp, h], labels [tokens] -> (sum of factors * losses, losses [tokens]), float32.

    For training: the sum alone has a gradient, which is made beside the losses, so that each logit is computed once.
    factors: float32 [tokens] (None: 1). Every token must have a target. at_once: elements of logits at a time (0: what
    suits the device). The gradient of `weight` is summed over chunks in float32 and rounded to its dtype once.
    """
    at_once = at_once or (LOGITS_AT_ONCE_CPU if hidden.device.type == "cpu" else LOGITS_AT_ONCE)
    return _LossAndGradient.apply(hidden, weight, labels, factors, max(1, at_once // weight.shape[0]))


class _LossAndGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, factors, size):
        group = _vocabulary_group()
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        made = torch.empty_like(hidden) if of_hidden else None
        make = torch.empty if len(hidden) else torch.zeros
        total = make(weight.shape, dtype=torch.float32, device=weight.device) if of_weight else None
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = torch.nn.functional.linear(hidden[part], weight)
            losses[part] = _loss_and_gradient(
                logits, labels[part], None if factors is None else factors[part, None], group
            )
            if of_hidden:
                torch.mm(logits, weight, out=made[part])
            if of_weight:
                add_product(total, logits.t(), hidden[part], first=start == 0)
            del logits  # before the next ones are made
        # On a GPU rounded with the product in the backward pass, which begins here: one pass over it instead of two.
        ctx.dtype = weight.dtype
        ctx.save_for_backward(made, total.to(weight.dtype) if of_weight and not weight.is_cuda else total)
        ctx.mark_non_differentiable(losses)
        return (losses if factors is None else factors * losses).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx, of_sum, _):
        return *(_times(each, of_sum, ctx.dtype) for each in ctx.saved_tensors), None, None, None


def _times(gradient: Tensor | None, of_sum: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A gradient times a number: in place, unless it has another dtype than it is to have."""
    if gradient is None:
        return None
    out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, of_sum, out=out)


def _loss_and_gradient(logits: Tensor, labels: Tensor, factor: Tensor | None, group) -> Tensor:
    """Loss and gradient, written into the logits: logits [tokens, vocab / tp], labels [tokens], factor float32 [tokens,
    1] -> loss [tokens], float32.

    The logits become the gradient of factor * loss by them. The label's own entry, a probability minus 1, is exact where the
    probability is near 1.
    """
    if logits.is_cuda and group is None and len(logits):
        losses = _in_one_kernel(logits, labels, factor)
        if losses is not None:
            return losses
    rows = max(1, SOFTMAX_AT_ONCE // logits.shape[1])
    parts = zip(logits.split(rows), labels.split(rows), [None] * len(logits) if factor is None else factor.split(rows))
    return torch.cat([_gradient_in_place(*part, group) for part in parts])


def softmax_gradient(logits: Tensor, labels: Tensor, factor: Tensor | None) -> Tensor:
    """As `_loss_and_gradient`, for a compiler that keeps what is float32 in registers: the logits are read for their largest,
    for their sum and for the gradient."""
    full, labels = logits.float(), labels[:, None]
    ours = torch.arange(logits.shape[1], device=logits.device) == labels
    largest = full.amax(1, keepdim=True)
    total = torch.exp(full - largest).sum(1, keepdim=True).log()
    of_label = torch.where(ours, full, 0.0).sum(1, keepdim=True) - largest - total
    made = torch.where(ours, torch.expm1(of_label), torch.exp(full - largest - total))
    logits.copy_(made if factor is None else made * factor)
    return -of_label.squeeze(1)


_in_one_kernel = OneKernel(softmax_gradient, "the softmax of the head", sums=True)


def _gradient_in_place(logits: Tensor, labels: Tensor, factor: Tensor | None, group) -> Tensor:
    """As `_loss_and_gradient`, by torch's own operations, which make float32 copies of the logits."""
    if group is not None:
        return _with_other_ranks(logits, labels, factor, group)
    logs = torch.log_softmax(logits, dim=1, dtype=torch.float32)
    labels = labels[:, None]
    of_label = logs.gather(1, labels)
    own = torch.expm1(of_label)
    if factor is not None:
        logs += factor.log()  # a factor of 0: minus infinity, whose exponential is 0
        own *= factor
    torch.exp(logs, out=logits)
    logits.scatter_(1, labels, own.to(logits.dtype))
    return -of_label.squeeze(1)


def _with_other_ranks(logits: Tensor, labels: Tensor, factor: Tensor | None, group) -> Tensor:
    """The same with vocabulary parallelism."""
    full = logits.float()  # a copy, unless they are float32
    largest = full.amax(1)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=group)
    labels = labels - group.rank() * logits.shape[1]
    ours = ((labels >= 0) & (labels < logits.shape[1])).float()
    labels = labels.clamp(0, logits.shape[1] - 1)
    full -= largest[:, None]
    of_label = full.gather(1, labels[:, None]).squeeze(1)
    total = full.exp_().sum(1)
    both = torch.stack((total, of_label * ours))
    torch.distributed.all_reduce(both, group=group)
    total, of_label = both
    full *= total.reciprocal()[:, None] if factor is None else factor / total[:, None]
    full.scatter_add_(1, labels[:, None], -(ours[:, None] if factor is None else ours[:, None] * factor))
    if full is not logits:
        logits.copy_(full)
    return total.log() - of_label
