"""Table of language model families that a run can start from and that the text path of an export belongs to.

`model_type` is transformers' name of the family in config.json. Two switches of `ModelConfig` describe its layers; other
features of its configuration are refused. Of two families with the same switches the first is an export's text path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    defaults: Mapping[
        str, Any
    ]  # of missing keys of config.json, as in transformers' class: DEFAULTS, and others that it has
    plain: Mapping[str, tuple] = field(default_factory=dict)  # keys of this family alone -> supported values
    says: Mapping[str, Any] = field(default_factory=dict)  # keys of its config.json for features that are not supported
    own_vocabulary: int = 0  # smallest vocabulary of its own tokenizers; a smaller one has another licence

    def __post_init__(self) -> None:
        """Raises UserError for an entry that would be accepted and do something else: a lone text, an empty licence."""
        missing = [key for key in DEFAULTS if key not in self.defaults]
        lone = [key for key, values in self.plain.items() if not isinstance(values, tuple)]
        faults = {
            "flavour": "" if self.flavour else "a name is needed",
            "licence": "" if self.licence.strip() else "cards show it: name the licence of the weights",
            "end_of_text": ""
            if isinstance(self.end_of_text, tuple) and self.end_of_text
            else 'a tuple of token names is needed, as ("</s>",)',
            "defaults": f"{missing[0]} is needed, as transformers' class has it" if missing else "",
            "plain": f"the values of {lone[0]} must be a tuple, as (False,)" if lone else "",
        }
        for name, fault in faults.items():
            if fault:
                raise UserError(f"model/families.py: {name} of {self.flavour!r} is {getattr(self, name)!r}: {fault}")


DEFAULTS = ("num_key_value_heads", "max_position_embeddings", "head_dim")
"""Keys of `defaults` that every family says; null is "as the attention heads have it"."""

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


def by_flavour(families: Iterable[Family]) -> dict[str, Family]:
    """Flavour -> family. Raises UserError for a flavour that two families have."""
    found: dict[str, Family] = {}
    for family in families:
        if family.flavour in found:
            raise UserError(f"model/families.py: two families have the flavour {family.flavour!r}: rename one")
        found[family.flavour] = family
    return found


BY_FLAVOUR = by_flavour(FAMILIES.values())

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


def with_layers_of(config: ModelConfig) -> list[Family]:
    """The families with a model's switches, in the order of the table."""
    return [
        family
        for family in FAMILIES.values()
        if (family.attention_bias, family.qk_norm) == (config.attention_bias, config.qk_norm)
    ]


def flavour_of(config: ModelConfig, tokenizer: Any | None) -> str:
    """`model.flavour` for a model: that of the first family with its layers and, in its tokenizer, its end-of-text token.

    Without a tokenizer, or where no family ends texts as the model does, the first with its layers.
    """
    first = FAMILIES[family_of(config)].flavour
    if tokenizer is None:
        return first
    for family in with_layers_of(config):
        ids = (tokenizer.token_to_id(name) for name in family.end_of_text)
        if next((found for found in ids if found is not None), None) == config.eos_token_id:
            return family.flavour
    return first


def setting(values: Mapping[str, Any], key: str) -> Any:
    """Value of a key of a family's config.json, or its default where the key is missing.

    null is as good as absent, but for numbers of heads and their size: there it says "as the attention heads have it".
    """
    defaults = {**COMMON_DEFAULTS, **FAMILIES[values["model_type"]].defaults}
    if values.get(key) is None and not (key in values and key in ("num_key_value_heads", "head_dim")):
        return defaults.get(key)
    return values[key]
