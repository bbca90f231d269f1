"""Table of language model families that a run can start from and that the text path of an export belongs to.

`model_type` is transformers' name of the family in config.json. Two switches of `ModelConfig` describe its layers; other
features of its configuration are refused. Of two families with the same switches the first is an export's text path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pretrain.system.errors import UserError

if TYPE_CHECKING:
    from model.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """One family."""

    flavour: str  # its name in `model.flavour` of a run's configuration
    attention_bias: bool  # bias on q, k and v
    qk_norm: bool  # norms on queries and keys, per head
    end_of_text: tuple[str, ...]  # names of the end-of-text token in its tokenizers, by preference
    causal_lm: str  # transformers' class
    licence: str  # licence of its weights and tokenizer, for the card of a model that starts from it
    defaults: Mapping[str, Any]  # default of a missing key of config.json, as in transformers' class
    plain: Mapping[str, tuple] = field(default_factory=dict)  # keys of this family alone -> supported values
    says: Mapping[str, Any] = field(default_factory=dict)  # keys of its config.json for features that are not supported
    own_vocabulary: int = 0  # smallest vocabulary of its own tokenizers; a smaller one has another licence


FAMILIES = {
    "qwen2": Family(
        flavour="qwen2.5",
        attention_bias=True,
        qk_norm=False,
        end_of_text=("<|endoftext|>",),
        causal_lm="Qwen2ForCausalLM",
        licence="Apache-2.0, except for Qwen2.5-3B, whose Qwen Research licence forbids commercial use",
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768, "head_dim": None},
        plain={"use_mrope": (False,), "attention_bias": (True, False)},  # its class has the bias, whatever the key says
        says={"use_sliding_window": False},
        own_vocabulary=151_643,
    ),
    "qwen3": Family(
        flavour="qwen3",
        attention_bias=False,
        qk_norm=True,
        end_of_text=("<|endoftext|>",),
        causal_lm="Qwen3ForCausalLM",
        licence="Apache-2.0",
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32_768, "head_dim": 128},
        says={"use_sliding_window": False, "attention_bias": False},
        own_vocabulary=151_643,
    ),
    "llama": Family(
        flavour="llama",
        attention_bias=False,
        qk_norm=False,
        end_of_text=("<|endoftext|>", "<|end_of_text|>", "</s>"),
        causal_lm="LlamaForCausalLM",
        licence=(
            "Llama: Meta's community licence of its version, which asks for its text beside the weights, the words "
            "'Built with Llama', and a name that begins with Llama; other models of this make have their own"
        ),
        defaults={"num_key_value_heads": None, "max_position_embeddings": 2048, "head_dim": None},
        says={"attention_bias": False, "mlp_bias": False},
    ),
}

BY_FLAVOUR = {family.flavour: family for family in FAMILIES.values()}

COMMON_DEFAULTS = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
"""Of every family."""

OTHERS = {
    "qwen2_moe": "a mixture of experts",
    "qwen3_moe": "a mixture of experts",
    "mixtral": "a mixture of experts",
    "qwen3_next": "linear attention and a mixture of experts",
    "mistral": "attention in a sliding window",
    "qwen2_vl": "vision encoder of its own",
    "qwen2_5_vl": "vision encoder of its own",
    "qwen3_vl": "vision encoder of its own",
}
"""What people try, and why it does not fit."""


def family_of(config: ModelConfig) -> str:
    """transformers' model type of a model's text path. Raises UserError for layers that no family has."""
    for model_type, family in FAMILIES.items():
        if (family.attention_bias, family.qk_norm) == (config.attention_bias, config.qk_norm):
            return model_type
    raise UserError(
        f"attention_bias {config.attention_bias} and qk_norm {config.qk_norm}: no family of language models has both, so there "
        "is none that its text path could be of"
    )


def setting(values: Mapping[str, Any], key: str) -> Any:
    """Value of a key of a family's config.json, or its default where the key is missing.

    null is as good as absent, but for numbers of heads and their size: there it says "as the attention heads have it".
    """
    defaults = {**COMMON_DEFAULTS, **FAMILIES[values["model_type"]].defaults}
    if values.get(key) is None and not (key in values and key in ("num_key_value_heads", "head_dim")):
        return defaults.get(key)
    return values[key]
