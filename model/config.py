"""Model configuration: sizes, Qwen2 or Qwen3 layers, layer kinds. The field names are those of the exported
`config.json`."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from model.layer_kinds import KINDS, SEPARATED, SHARED
from model.vocabulary import Vocabulary
from pretrain.system.errors import UserError

if TYPE_CHECKING:
    from model.hf.rope_uni_x import Rope

MODEL_TYPES = ("uni_x", "unix_ar")
"""`model_type` in the config.json of exports: today's, and that of exports until November 2026."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of Qwen2.5's (`attention_bias`) or Qwen3's (`qk_norm`) architecture, with a kind for each layer.

    `shared` layers have one set of weights; `separated` ones have a text and a vision branch, and attention only
    within a modality (Uni-X, arXiv 2509.24365, equation 4). `mot` layers have both branches, norms and output
    projections included, and attention over the whole document (Mixture-of-Transformers, arXiv 2411.04996); `moe_hard`
    layers share all but the feed-forward.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    image_token_offset: int
    codebook_size: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_id: int
    layer_kinds: tuple[str, ...]
    attention_bias: bool = True
    qk_norm: bool = False
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    max_position_embeddings: int = 32_768
    rope_scaling: dict[str, Any] | None = None  # {"rope_type": linear, yarn or llama3, its settings}: model/rope.py

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer_kinds", tuple(self.layer_kinds))
        if len(self.layer_kinds) != self.num_hidden_layers:
            raise UserError(
                f"layer_kinds names {len(self.layer_kinds)} layers, num_hidden_layers is {self.num_hidden_layers}: "
                "give one kind for each layer"
            )
        unknown = sorted(set(self.layer_kinds) - set(KINDS))
        if unknown:
            raise UserError(f"layer_kinds has {unknown}: known kinds are {list(KINDS)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}: change one of them"
            )
        if self.vocab_size < self.image_token_offset + self.codebook_size:
            raise UserError(
                f"vocab_size {self.vocab_size} is below image_token_offset + codebook_size = "
                f"{self.image_token_offset + self.codebook_size}: every code needs an embedding row"
            )

    @property
    def rope(self) -> Rope:
        """Rotary position settings."""
        from model.hf.rope_uni_x import Rope  # which imports torch

        return Rope(self.rope_theta, self.rope_scaling)

    @property
    def vocabulary(self) -> Vocabulary:
        """Joint vocabulary of text and image token ids."""
        return Vocabulary(
            image_token_offset=self.image_token_offset,
            codebook_size=self.codebook_size,
            vision_start_id=self.vision_start_token_id,
            vision_end_id=self.vision_end_token_id,
            eos_id=self.eos_token_id,
        )

    def to_dict(self) -> dict:
        """Fields as plain JSON types, as written to `config.json`."""
        return {**asdict(self), "layer_kinds": list(self.layer_kinds)}

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        """Configuration from the fields that this class has; other fields of a Hugging Face `config.json` are
        ignored."""
        known = {field.name for field in fields(cls)}
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in values]
        if missing:
            raise UserError(f"the model config lacks {missing}: is this the config.json of a Uni-X model?")
        return cls(**{name: value for name, value in values.items() if name in known})


def layer_kinds(
    num_layers: int, shallow: int = 0, deep: int = 0, kind: str = SEPARATED, every: int = 0
) -> tuple[str, ...]:
    """`shallow` layers of `kind` first, `deep` of them last, `shared` between: 12, 6 of 36 is Uni-X 3B.

    every: the last of each `every` layers instead, as in mixtures of experts: 1 of `mot` is Mixture-of-Transformers.
    """
    if every and (shallow or deep):
        raise UserError(f"{shallow} shallow + {deep} deep layers and every {every}: choose layers by one or the other")
    if kind == SHARED and (shallow or deep or every):
        raise UserError(f"{shallow} shallow + {deep} deep layers, every {every}, of kind shared: say which other kind")
    if shallow < 0 or deep < 0 or shallow + deep > num_layers:
        raise UserError(f"{shallow} shallow + {deep} deep {kind} layers do not fit in {num_layers} layers")
    if every < 0 or every > num_layers:
        raise UserError(f"{kind} layers every {every} of {num_layers} layers: there would be none")
    if every:
        return tuple(kind if (index + 1) % every == 0 else SHARED for index in range(num_layers))
    return (kind,) * shallow + (SHARED,) * (num_layers - shallow - deep) + (kind,) * deep
