"""Memory traffic in bytes beside matrix products and attention, which count their own.

Elements are counted by what the operations of model/ read and write, each once; a test holds them against a dry run, which
sees every operation of a step.
"""

from __future__ import annotations

from model.config import ModelConfig
from model.layer_kinds import KINDS
from model.weight_shapes import layer_shapes
from pretrain.parallel import ParallelLayout
from pretrain.planning.activations import RowShape, head_parts
from pretrain.planning.memory import StaticBytes

PASSES = 22  # passes of a layer's norms and residual sums over its hidden states, forward and backward: of `_of_hidden`
ROTATION = 4  # passes over queries and keys: one kernel in each direction reads and writes them
TABLES = 4  # times that a kernel of those reads half a cosine and half a sine for each token
JOINED = 4  # passes over hidden states where two branches' are joined: their outputs forward, their gradients backward
SPLIT = 4  # passes over linear_qkv's output: split into queries, keys and values, and joined again, with its bias
SWIGLU = 8  # passes over the MLP's width: 3 forward, 5 backward
# Bytes per weight and row where the matrix product adds to the sum, by bytes of the sum: it is read and written, less the
# gradient in bfloat16 that a product alone writes, which is part of its rate.
IN_PRODUCT = {4: 6, 2: 2}
SOFTMAX = 3  # passes over logits, by the code that torch 2.13 generates: for their largest and sum, for the gradient, and its writing


def layer_bytes(
    config: ModelConfig, row: RowShape, kind: str, width: int, in_product: bool = True, sums: int = 4
) -> float:
    """Memory traffic of one layer of this kind on one row, forward and backward. in_product: matrix products add to the
    gradients, of `sums` bytes, as with megatron-core; DeepSpeed adds afterwards."""
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    elements = PASSES * config.hidden_size + ROTATION * (queries + keys) + SPLIT * (queries + 2 * keys)
    elements += TABLES * config.head_dim
    if KINDS[kind].vision_weights != "none":
        elements += JOINED * config.hidden_size
    elements += SWIGLU * config.intermediate_size
    if config.qk_norm:
        elements += 5 * (queries + keys)
    weights = sum(_size(shape) for shape in layer_shapes(config, kind).values())
    added = IN_PRODUCT[sums] if in_product and width == 2 else _accumulated(width, sums)
    return row.tokens * elements * width + added * weights


def begun_bytes(config: ModelConfig, kind: str, sums: int) -> float:
    """Gradient sums of a layer's matrices, which a step's first product writes: they are neither zeroed nor read before."""
    return sums * sum(_size(shape) for shape in layer_shapes(config, kind).values() if len(shape) > 1)


def cheap_bytes(config: ModelConfig, row: RowShape, width: int) -> float:
    """Memory traffic of `parallel.recompute_cheap` in a layer: two norms, and the activation function."""
    return row.tokens * (2 * 2 * config.hidden_size + 3 * config.intermediate_size) * width


def embedding_bytes(config: ModelConfig, row: RowShape, width: int, sums: int = 4) -> float:
    """Memory traffic of the embedding: looking up rows, and their gradient, a table of zeros that is added to and
    summed; where it is tied, the head's gradient is added before."""
    table = config.vocab_size * config.hidden_size
    tied = 3 * width if config.tie_word_embeddings else 0
    return 4 * row.tokens * config.hidden_size * width + table * (width + tied + _accumulated(width, sums))


def head_bytes(config: ModelConfig, row: RowShape, width: int, sums: int = 4) -> float:
    """Memory traffic of the LM head: softmax over all logits, and its weight gradient, which the first chunk makes and the
    others add to, scaled and rounded in the backward pass; without a tied embedding it is accumulated by itself."""
    logits, table = row.tokens * config.vocab_size, config.vocab_size * config.hidden_size
    added = IN_PRODUCT[4] * head_parts(config, row) - 4 if width == 2 else 4 + 4 * head_parts(config, row)
    once = 4 + width
    if not config.tie_word_embeddings:
        once += _accumulated(width, sums)
    return logits * SOFTMAX * width + (added + once) * table


def shared_softmax_bytes(config: ModelConfig, row: RowShape, width: int) -> float:
    """Memory traffic of the softmax where ranks share the vocabulary, beyond that of one rank: float32 logits are read for their
    largest and their sum, read and written by a difference, an exponential and a factor; in bfloat16 they are a copy."""
    return row.tokens * config.vocab_size * (2 * 4 + 3 * 8 + (2 * (width + 4) if width == 2 else 0) - SOFTMAX * width)


def update_bytes(
    static: StaticBytes, parallel: ParallelLayout, data_ranks: int, half: bool, begun: float = 0.0
) -> float:
    """Memory traffic of an optimizer step: Adam reads and writes its state, reads gradients and writes weights;
    gradients are scaled and their norm is taken first, and the gradient buffer is zeroed but for `begun` bytes."""
    updated = static.parameters / (data_ranks if parallel.distributed_optimizer else 1)
    return 2 * static.optimizer + static.gradients - begun + updated * (4 * 4 + (2 if half else 8))


def _accumulated(width: int, sums: int) -> int:
    """Bytes per weight and row: its gradient is read, the sum is read and written."""
    return width + 2 * sums


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
