"""Next-token cross-entropy over the joint vocabulary, a loss for each token."""

from __future__ import annotations

import torch
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.vocabulary import IGNORED

LOGITS_AT_ONCE = 2**26  # elements of [tokens, vocab / tp] that may exist at a time: 256 MiB in float32


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, at_once: int = LOGITS_AT_ONCE) -> Tensor:
    """hidden [tokens, h], weight [vocab / tp, h], labels [tokens] -> loss [tokens] in float32, 0 where it is ignored.

    The logits of a long row never exist whole: chunks are computed, dropped, and computed again in the backward pass.
    torch's own `linear_cross_entropy` does this too, but rounds the losses of a bfloat16 head to bfloat16 (steps of
    0.03 at a loss of 8); here the softmax is float32 whatever the head is. With tensor parallelism each rank has the
    logits of its rows of the vocabulary, and ignored labels are not looked for: every token must have a target.
    """
    size = max(1, at_once // weight.shape[0])
    if len(hidden) <= size:
        return _losses(hidden, weight, labels)
    chunks = zip(hidden.split(size), labels.split(size))
    return torch.cat([checkpoint(_losses, part, weight, target, use_reentrant=False) for part, target in chunks])


def _losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight).float()
    if parallel_state.model_parallel_is_initialized() and parallel_state.get_tensor_model_parallel_world_size() > 1:
        return tensor_parallel.vocab_parallel_cross_entropy(logits, labels)
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
