"""FLOPs per packed sequence (row): the model's floating-point operations, a multiply-add being two.

Counted are matrix products: projections, feed-forward, attention, head. What is computed twice to save memory (layers
that are recomputed, scores of fused attention) counts once, as is usual for model FLOPs (Chowdhery et al., arXiv 2204.02311,
appendix B); unlike there, attention counts the causal half only, because the other half need not be computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.layer_kinds import KINDS

BACKWARD = 2  # backward: the gradients of both factors cost one product each


def layer_weights(config: ModelConfig) -> int:
    """Weights that one token uses in the matrix products of a layer, of any kind: its activated parameters."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = config.hidden_size * (queries + 2 * keys) + queries * config.hidden_size
    return attention + 3 * config.hidden_size * config.intermediate_size


def causal_pairs(lengths: Sequence[int]) -> int:
    """(query, key) pairs of causal attention within documents of these lengths."""
    return sum(length * (length + 1) // 2 for length in lengths)


@dataclass(frozen=True)
class RowFlops:
    """FLOPs of one row's forward pass, by part."""

    separated_products: int  # projections and feed-forward of all layers that attend within a modality
    separated_attention: int  # scores, and their product with the values
    shared_products: int  # of all others, with attention over whole documents
    shared_attention: int
    head: int

    @property
    def forward(self) -> int:
        """FLOPs of the forward pass."""
        return sum(vars(self).values())

    @property
    def training(self) -> int:
        """FLOPs of the forward and the backward pass."""
        return (1 + BACKWARD) * self.forward


def row_flops(config: ModelConfig, lengths: Mapping[str, Sequence[int]], targets: int) -> RowFlops:
    """Count the FLOPs of a row with these tokens per document ("document", "text", "vision") and this many target
    tokens.

    Separated layers attend within a modality: L_t^2 + L_v^2 in a document, where shared layers have (L_t + L_v)^2.
    """
    separated = sum(KINDS[kind].within_modality for kind in config.layer_kinds)
    shared = config.num_hidden_layers - separated
    products = 2 * layer_weights(config) * sum(lengths["document"])
    pair = 4 * config.num_attention_heads * config.head_dim  # of a query and a key, then of a weight and a value
    return RowFlops(
        separated_products=separated * products,
        separated_attention=separated * pair * (causal_pairs(lengths["text"]) + causal_pairs(lengths["vision"])),
        shared_products=shared * products,
        shared_attention=shared * pair * causal_pairs(lengths["document"]),
        head=2 * config.hidden_size * config.vocab_size * targets,
    )
