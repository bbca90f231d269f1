"""Weight names and layouts of the training model (megatron-core's) and of the Hugging Face model, as a table.

The two differ in names, in where q, k and v live (one matrix, grouped by key-value head, against three), and in gate
and up projections (stacked against two). The text branch of a layer with two has the names of a plain layer on the
Hugging Face side, so that a plain Qwen class can load the text path of an export.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, cat

from model.config import ModelConfig
from model.layer_kinds import KINDS

WHOLE = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
# training name inside a layer -> Hugging Face names that it holds, stacked
IN_LAYER = {
    "input_layernorm.weight": ["input_layernorm.weight"],
    "self_attention.linear_qkv.weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
    "self_attention.linear_qkv.bias": [f"self_attn.{x}_proj.bias" for x in "qkv"],
    "self_attention.q_layernorm.weight": ["self_attn.q_norm.weight"],
    "self_attention.k_layernorm.weight": ["self_attn.k_norm.weight"],
    "self_attention.linear_proj.weight": ["self_attn.o_proj.weight"],
    "pre_mlp_layernorm.weight": ["post_attention_layernorm.weight"],
    "mlp.linear_fc1.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "mlp.linear_fc2.weight": ["mlp.down_proj.weight"],
}


def training_names(config: ModelConfig) -> dict[str, list[str]]:
    """Training name -> Hugging Face names of the weights that it holds, for every weight."""
    names = {key: [value] for key, value in WHOLE.items() if key != "output_layer.weight"}
    if not config.tie_word_embeddings:
        names["output_layer.weight"] = [WHOLE["output_layer.weight"]]
    for index, kind in enumerate(config.layer_kinds):
        for branch, beginning in KINDS[kind].branches.items():
            place = f"decoder.layers.{index}." + (f"{branch}." if branch else "")
            group = "vision_layers" if branch == "vision" else "layers"
            for name, parts in IN_LAYER.items():
                if not name.startswith(beginning) or (name.endswith("bias") and not config.attention_bias):
                    continue
                if ("q_layernorm" in name or "k_layernorm" in name) and not config.qk_norm:
                    continue
                names[place + name] = [f"model.{group}.{index}.{part}" for part in parts]
    return names


def to_hugging_face(config: ModelConfig, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """(training name, tensor) pairs, a tensor at a time -> (Hugging Face name, tensor) pairs."""
    names = training_names(config)
    for name, tensor in weights:
        parts = names[name]
        yield from zip(parts, _unstack(config, name, tensor) if len(parts) > 1 else [tensor])


def from_hugging_face(config: ModelConfig, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face weights -> (training name, tensor) pairs. KeyError names a weight that is missing."""
    for name, parts in training_names(config).items():
        tensors = [weights[part] for part in parts]
        yield name, stack(config, name, tensors) if len(parts) > 1 else tensors[0]


def _unstack(config: ModelConfig, name: str, tensor: Tensor) -> list[Tensor]:
    """linear_qkv [groups * (queries per group + 2) * d, ...] -> q, k, v; linear_fc1 [2 * ffn, h] -> gate, up."""
    if "linear_fc1" in name:
        return [part.contiguous() for part in tensor.chunk(2)]
    groups, d = config.num_key_value_heads, config.head_dim
    queries = config.num_attention_heads // groups
    grouped = tensor.reshape(groups, queries + 2, d, *tensor.shape[1:])
    parts = grouped.split([queries, 1, 1], dim=1)
    return [part.reshape(-1, *tensor.shape[1:]) for part in parts]


def stack(config: ModelConfig, name: str, tensors: list[Tensor]) -> Tensor:
    """The inverse of `_unstack`."""
    if "linear_fc1" in name:
        return cat(tensors)
    groups, d = config.num_key_value_heads, config.head_dim
    grouped = [tensor.reshape(groups, -1, d, *tensor.shape[1:]) for tensor in tensors]
    return cat(grouped, dim=1).reshape(-1, *tensors[0].shape[1:])
