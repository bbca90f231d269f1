"""Activation memory of a rank: what is saved for the backward pass, and temporary memory on top.

Counted are the tensors that the modules of model/layer_specs.py save, on a GPU with its varlen attention kernel: the
inputs of norms and projections, queries, keys and values before and after rotation, gate and up, and what is made of
them. On a CPU torch's norm in bfloat16 is made of smaller operations that save two float32 tensors more, and attention copies
what it needs (documents of more than 256 tokens: shorter ones save their scores, which are not counted).
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ModelConfig
from pretrain.parallel import ParallelLayout
from pretrain.planning.memory import PipelineStage

LOGITS_AT_ONCE, SOFTMAX_AT_ONCE = (
    9 * 2**26,
    2**25,
)  # as in model/loss.py, which needs torch to be imported; a test compares them


@dataclass(frozen=True)
class RowShape:
    """Row of `tokens` with `documents` documents of `text` and `vision` tokens each; the rest is padding."""

    tokens: int
    documents: int
    text: int
    vision: int


@dataclass(frozen=True)
class ActivationBytes:
    """Activation memory of one rank of a stage."""

    kept: int  # for each row in flight
    recomputed: int  # of the recomputed layer
    layer: int  # temporary, of a layer's backward pass
    head: int  # temporary, of the LM head
    rows: int  # rows in flight

    @property
    def working(self) -> int:
        """Temporary bytes at most, beyond what is saved."""
        return max(self.recomputed + self.layer, self.head)

    @property
    def peak(self) -> int:
        """Peak bytes."""
        return self.rows * self.kept + self.working


def layer_bytes(config: ModelConfig, row: RowShape, parallel: ParallelLayout, width: int, on_cpu: bool = False) -> int:
    """Bytes that one layer saves for its backward pass on one rank. width: bytes per element of an activation.

    Branches of separated layers share the row's tokens, so a layer of any kind saves equally much.
    """
    tensor, d = parallel.tensor, config.head_dim
    along = row.tokens // tensor if parallel.sequence else row.tokens
    ffn, queries, keys = (
        size // tensor
        for size in (config.intermediate_size, config.num_attention_heads * d, config.num_key_value_heads * d)
    )
    heads = config.num_attention_heads // tensor
    norms = 2 * _norm(along * config.hidden_size, along, width, on_cpu)
    again = parallel.recompute_cheap
    inputs = 0 if again else 2 * along * config.hidden_size  # of linear_qkv and linear_fc1
    # linear_qkv's output is kept where norms on queries and keys read it; values are then a copy nevertheless.
    mixed = queries + 2 * keys if config.qk_norm and not on_cpu else 0
    wide = (
        width == 4 and not on_cpu
    )  # documents are padded copies there, in which every query head has a key head of its own
    rotated = 3 * queries if wide else queries + 2 * keys
    attended = (2 if on_cpu or wide else 1) * queries  # saved by attention, and again as the input of linear_proj
    feed_forward = (2 if again else 3) * ffn  # gate and up, and what is made of them, the input of linear_fc2
    saved = norms + (inputs + row.tokens * (mixed + rotated + attended + feed_forward)) * width
    saved += 4 * row.tokens * heads  # one sum per query, for attention's backward pass
    if config.qk_norm:
        groups = row.tokens * (config.num_attention_heads + config.num_key_value_heads) // tensor
        saved += _norm(row.tokens * (queries + keys), groups, width, on_cpu)
    return saved


def _norm(elements: int, vectors: int, width: int, on_cpu: bool) -> int:
    """Bytes that a norm saves: its input and a float32 per vector; in bfloat16 on a CPU the input and its float32
    scaling."""
    return elements * (8 if on_cpu and width == 2 else width) + 4 * vectors


def ends_bytes(
    config: ModelConfig, stage: PipelineStage, row: RowShape, parallel: ParallelLayout, width: int, on_cpu: bool = False
) -> int:
    """Bytes that a stage saves of a row outside its layers: routing tables, its output, the LM head's norm, and the
    gradients of the LM head's input and matrix, which are made with the loss."""
    along = row.tokens // parallel.tensor if parallel.sequence else row.tokens
    tables = 2 * 2 * row.tokens * config.head_dim * width  # cosines and sines, in both orders
    if not stage.head:
        return tables + along * config.hidden_size * width
    norm = _norm(along * config.hidden_size, along, width, on_cpu)
    gradients = (row.tokens + config.vocab_size // parallel.tensor) * config.hidden_size * width
    return tables + norm + gradients


def layer_working_bytes(
    config: ModelConfig, stage: PipelineStage, row: RowShape, parallel: ParallelLayout, width: int
) -> int:
    """Peak temporary bytes of the backward passes of layers and embedding on top of what is saved: those of an MLP."""
    matrix = 2 * (config.intermediate_size // parallel.tensor) * config.hidden_size * width
    # The gradient of the activation function's output is there with that of its input, which has twice the width, while
    # that output itself is gone; it is there too where it was made again.
    layer = (3 if parallel.recompute_cheap else 2) * row.tokens * (
        config.intermediate_size // parallel.tensor
    ) * width + matrix
    if parallel.sequence:
        layer += row.tokens * config.hidden_size * width  # megatron-core's buffer for gathered tokens
    table = (config.vocab_size // parallel.tensor) * config.hidden_size * width
    return max(layer if stage.layers else 0, table if stage.embedding else 0)


def head_parts(config: ModelConfig, row: RowShape) -> int:
    """Number of chunks in which the LM head processes the tokens of a row, on one rank."""
    return -(-row.tokens // max(1, LOGITS_AT_ONCE // config.vocab_size))


def head_working_bytes(config: ModelConfig, row: RowShape, parallel: ParallelLayout, width: int) -> int:
    """Peak temporary bytes of the LM head on top of what is saved.

    Logits of a chunk, where ranks share the vocabulary some of them in float32; the gradient of its matrix, which adds up in
    float32; its input, gathered where ranks share the tokens.
    """
    local = config.vocab_size // parallel.tensor
    at_once, table = min(row.tokens * local, LOGITS_AT_ONCE), local * config.hidden_size
    # With one rank the softmax is one kernel, and nothing of it is float32 in memory. The sum's product is never there by
    # itself, and the gradient in bfloat16, which is counted as saved, is made last, when the logits are gone.
    softmax = min(at_once, SOFTMAX_AT_ONCE) * (4 if width == 2 else 0) if parallel.tensor > 1 else 0
    logits = max(0, width * at_once + softmax - (width * table if width == 2 else 0))
    gradients = 0 if width == 4 else 4 * table  # in float32 the sum is what is saved
    return logits + gradients + row.tokens * config.hidden_size * width * (3 if parallel.sequence else 1)


def activation_bytes(
    config: ModelConfig,
    stage: PipelineStage,
    row: RowShape,
    parallel: ParallelLayout,
    width: int,
    rows_under_way: int,
    on_cpu: bool = False,
) -> ActivationBytes:
    """Activation memory of a rank of this stage; `rows_under_way`: microbatches in flight, at most."""
    layer = layer_bytes(config, row, parallel, width, on_cpu)
    along = row.tokens // parallel.tensor if parallel.sequence else row.tokens
    each = along * config.hidden_size * width if parallel.recompute else layer
    return ActivationBytes(
        kept=stage.layers * each + ends_bytes(config, stage, row, parallel, width, on_cpu),
        recomputed=layer if parallel.recompute and stage.layers else 0,
        layer=layer_working_bytes(config, stage, row, parallel, width),
        head=head_working_bytes(config, row, parallel, width) if stage.head else 0,
        rows=rows_under_way,
    )
