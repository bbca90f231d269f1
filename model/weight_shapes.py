"""Shapes of the training model's weights from its configuration alone, in the order of the modules.

Without torch, since the planner uses it; tests compare it with the modules themselves.
"""

from __future__ import annotations

import math

from model.config import ModelConfig
from model.layer_kinds import KINDS
from model.tensor_shards import whole_shape

EMBEDDING, NORM, HEAD = "embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"


def branch_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Weights of one branch of a layer: attention and MLP with their norms."""
    hidden, ffn, d = config.hidden_size, config.intermediate_size, config.head_dim
    queries, both = config.num_attention_heads * d, (config.num_attention_heads + 2 * config.num_key_value_heads) * d
    shapes = {
        "input_layernorm.weight": (hidden,),
        "self_attention.linear_proj.weight": (hidden, queries),
        "self_attention.linear_qkv.weight": (both, hidden),
    }
    if config.attention_bias:
        shapes["self_attention.linear_qkv.bias"] = (both,)
    if config.qk_norm:
        shapes |= {"self_attention.q_layernorm.weight": (d,), "self_attention.k_layernorm.weight": (d,)}
    return shapes | {
        "pre_mlp_layernorm.weight": (hidden,),
        "mlp.linear_fc1.weight": (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
    }


def layer_shapes(config: ModelConfig, kind: str) -> dict[str, tuple[int, ...]]:
    """Weights of a layer of this kind, all branches."""
    weights = branch_shapes(config).items()
    return {
        (f"{branch}." if branch else "") + name: shape
        for branch, beginning in KINDS[kind].branches.items()
        for name, shape in weights
        if name.startswith(beginning)
    }


def stage_shapes(
    config: ModelConfig, first: int, layers: int, embedding: bool, head: bool
) -> dict[str, tuple[int, ...]]:
    """Full weights of a stage with `layers` layers from number `first` on, with or without the embedding and the LM
    head.

    A head without the embedding has a matrix of its own, also where the two are tied.
    """
    table = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: table} if embedding else {}
    for index in range(first, first + layers):
        of_layer = layer_shapes(config, config.layer_kinds[index])
        shapes |= {f"decoder.layers.{index}.{name}": shape for name, shape in of_layer.items()}
    if head:
        shapes[NORM] = (config.hidden_size,)
        if not (embedding and config.tie_word_embeddings):
            shapes[HEAD] = table
    return shapes


def share_sizes(shapes: dict[str, tuple[int, ...]], tensor: int) -> dict[str, int]:
    """Elements of each weight on one of `tensor` tensor-parallel ranks."""
    sizes = {}
    for name, shape in shapes.items():
        ones = (1,) * len(shape)
        is_cut = tensor > 1 and whole_shape(name, ones, tensor) != ones
        sizes[name] = math.prod(shape) // (tensor if is_cut else 1)
    return sizes


def parameters(config: ModelConfig) -> int:
    """Number of parameters."""
    whole = stage_shapes(config, 0, config.num_hidden_layers, embedding=True, head=True)
    return sum(math.prod(shape) for shape in whole.values())


def active_parameters(config: ModelConfig) -> int:
    """Activated parameters of one token: those of one branch where a layer has two."""
    one = sum(math.prod(shape) for shape in branch_shapes(config).values())
    every = sum(math.prod(shape) for kind in config.layer_kinds for shape in layer_shapes(config, kind).values())
    return parameters(config) - every + config.num_hidden_layers * one
