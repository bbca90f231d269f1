"""Memory traffic in bytes beside matrix products and attention, which count their own.

Elements are counted by what the operations of model/ read and write, each once; a test holds them against a dry run, which
sees every operation of a step.
"""

from __future__ import annotations

from model.config import ModelConfig
from model.weight_shapes import layer_shapes
from pretrain.parallel import ParallelLayout
from pretrain.planning.activations import RowShape, head_parts
from pretrain.planning.memory import StaticBytes

PASSES = 22  # passes of a layer's norms and residual sums over its hidden states, forward and backward: of `_of_hidden`
ROTATION = 10  # passes over queries and keys: 5 in each direction
SPLIT = 4  # passes over linear_qkv's output: split into queries, keys and values, and joined again, with its bias
SWIGLU = 8  # passes over the MLP's width: 3 forward, 5 backward
ACCUMULATED = 10  # bytes per weight and row: its bfloat16 gradient is read, the float32 sum is read and written


def layer_bytes(config: ModelConfig, row: RowShape, kind: str, width: int) -> float:
    """Memory traffic of one layer of this kind on one row, forward and backward."""
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    elements = PASSES * config.hidden_size + ROTATION * (queries + keys) + SPLIT * (queries + 2 * keys)
    elements += SWIGLU * config.intermediate_size
    if config.qk_norm:
        elements += 5 * (queries + keys)
    weights = sum(_size(shape) for shape in layer_shapes(config, kind).values())
    return row.tokens * elements * width + (ACCUMULATED if width == 2 else 12) * weights


def cheap_bytes(config: ModelConfig, row: RowShape, width: int) -> float:
    """Memory traffic of `parallel.recompute_cheap` in a layer: two norms, and the activation function."""
    return row.tokens * (2 * 2 * config.hidden_size + 3 * config.intermediate_size) * width


def embedding_bytes(config: ModelConfig, row: RowShape, width: int) -> float:
    """Memory traffic of the embedding: looking up rows, and their gradient, a table of zeros that is added to and
    summed."""
    table = config.vocab_size * config.hidden_size
    return 4 * row.tokens * config.hidden_size * width + table * (width + (ACCUMULATED if width == 2 else 12))


def head_bytes(config: ModelConfig, row: RowShape, width: int) -> float:
    """Memory traffic of the LM head: softmax over all logits, and its weight gradient, to which each chunk adds."""
    logits, table = row.tokens * config.vocab_size, config.vocab_size * config.hidden_size
    # Made float32; read for the largest, the sum and the logarithms, which are written; then the gradient.
    softmax = (width + 4 if width == 2 else 0) + 3 * 4 + 4 + 4 + width
    adding = (4 + 4 + 2 * width) if width == 2 else 8
    return logits * softmax + head_parts(config, row) * adding * table + (4 + width) * table


def update_bytes(static: StaticBytes, parallel: ParallelLayout, data_ranks: int, half: bool) -> float:
    """Memory traffic of an optimizer step: Adam reads and writes its state, reads gradients and writes weights;
    gradients are scaled and their norm is taken first, and the gradient buffer is zeroed."""
    updated = static.parameters / (data_ranks if parallel.distributed_optimizer else 1)
    return 2 * static.optimizer + static.gradients + updated * (4 * 4 + (2 if half else 8))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
