"""Configuration of a Uni-X model. Travels inside exported checkpoints: imports transformers only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from transformers import PretrainedConfig


class LayerKind(NamedTuple):
    """Properties of one layer kind."""

    vision_weights: str  # what vision tokens have of their own: "none", "mlp", or "all", norms included
    within_modality: bool  # a token attends to tokens of its own modality only


LAYER_KINDS = {
    "shared": LayerKind(vision_weights="none", within_modality=False),
    "separated": LayerKind(vision_weights="all", within_modality=True),
    "mot": LayerKind(vision_weights="all", within_modality=False),
    "moe_hard": LayerKind(vision_weights="mlp", within_modality=False),
}


FORMER_MODEL_TYPE = "unix_ar"
AUTO_MAP = {
    "AutoConfig": "configuration_uni_x.UniXConfig",
    "AutoModel": "modeling_uni_x.UniXModel",
    "AutoModelForCausalLM": "modeling_uni_x.UniXForCausalLM",
    "AutoModelForImageTextToText": "modeling_uni_x.UniXForCausalLM",
    "AutoProcessor": "configuration_uni_x.MissingProcessor",
}
"""Which class each Auto class of transformers opens; a folder's processor_config.json names its processor."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class MissingProcessor:
    """Stand-in that AutoProcessor finds where processor_config.json is missing: its error says why, and what restores
    it."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """transformers 4.57 calls it first."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Raises OSError, always."""
        raise OSError(
            f"{pretrained_model_name_or_path} has no processor_config.json: tools that tune or merge save the model alone. "
            + mending(pretrained_model_name_or_path)
        )


def mending(folder) -> str:
    """Instructions for restoring the code, the processor and the image tokenizer in a folder that a tool wrote."""
    return (
        "Copy the code, the processor and the image tokenizer from the export: "
        f"AutoProcessor.from_pretrained(export, trust_remote_code=True).save_pretrained({str(folder)!r})"
    )


def check_code(folder) -> None:
    """Raises OSError for weights without their code files, as mergekit leaves them: it copies this file alone.

    Of exports alone, whose files transformers copies to its cache; a configuration without weights needs no more code.
    """
    folder = Path(str(folder))
    if not __name__.startswith("transformers_modules.") or not folder.is_dir():
        return
    files = sorted({f"{name.split('.')[0]}.py" for name in AUTO_MAP.values()})
    missing = [name for name in files if not (folder / name).is_file()]
    if missing and any(found for pattern in WEIGHTS for found in folder.glob(pattern)):
        raise OSError(
            f"{folder} has no {', no '.join(missing)}: tools that merge copy weights alone. {mending(folder)}"
        )


class UniXConfig(PretrainedConfig):
    """A decoder of Qwen2.5's (`attention_bias`) or Qwen3's (`qk_norm`) architecture, with a kind for each layer.

    `layer_kinds` names one of `LAYER_KINDS` for each layer, first to last. Ids below `image_token_offset` are text;
    code c of the picture codebook has id `image_token_offset + c`. The defaults are the sizes of Uni-X 3B: 12
    separated, 18 shared and 6 separated layers on Qwen2.5-3B (Uni-X, arXiv 2509.24365). `text_logits_only` takes picture
    codes out of the logits: benchmarks of text then see the distribution over text that the base model has.
    `picture_shapes` are the shapes that a model draws, the square first, each {"grid": [rows, columns], "ids": [...]}: the ids
    of the size words that stand before its `<|vision_start|>`. None for a model that knows one shape, and no size words.

    Raises ValueError for an unknown kind of layer or for sizes that do not fit together.
    """

    model_type = "uni_x"
    keys_to_ignore_at_inference = ["past_key_values"]
    # trl's samplers never sample a processor's image token: generated texts then open no image
    attribute_map = {"image_token_id": "vision_start_token_id"}
    picture_shapes = None  # set only for models of several shapes, so that other files do not have it
    rope_scaling = None  # under a name of its own: transformers 5 has a property here, which renames it

    def __init__(
        self,
        hidden_size: int = 2048,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 36,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 2,
        head_dim: int = 128,
        vocab_size: int = 151_936 + 8_192,
        image_token_offset: int = 151_936,
        codebook_size: int = 8_192,
        vision_start_token_id: int = 151_652,
        vision_end_token_id: int = 151_653,
        eos_token_id: int = 151_643,
        layer_kinds: Sequence[str] = ("separated",) * 12 + ("shared",) * 18 + ("separated",) * 6,
        attention_bias: bool = True,
        qk_norm: bool = False,
        rope_theta: float = 1_000_000.0,
        rms_norm_eps: float = 1e-6,
        tie_word_embeddings: bool = True,
        initializer_range: float = 0.02,
        max_position_embeddings: int = 32_768,
        rope_scaling: dict | None = None,
        use_cache: bool = True,
        text_logits_only: bool = False,
        picture_shapes: list[dict] | None = None,
        **kwargs,
    ) -> None:
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.vocab_size = vocab_size
        self.image_token_offset = image_token_offset
        self.codebook_size = codebook_size
        self.vision_start_token_id = vision_start_token_id
        self.vision_end_token_id = vision_end_token_id
        self.layer_kinds = list(layer_kinds)
        self.attention_bias = attention_bias
        self.qk_norm = qk_norm
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = use_cache
        self.text_logits_only = text_logits_only
        if picture_shapes:
            self.picture_shapes = picture_shapes
        self._check()
        kwargs.pop("model_type", None)  # the folder's own, which may be a former name of this one
        # transformers 5 leaves out those that are not given, and its own code reads them
        tokens = {"bos_token_id": kwargs.pop("bos_token_id", None), "pad_token_id": kwargs.pop("pad_token_id", None)}
        super().__init__(eos_token_id=eos_token_id, tie_word_embeddings=tie_word_embeddings, **tokens, **kwargs)
        for name, token in tokens.items():
            setattr(self, name, token)

    @classmethod
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict, dict]:
        """As in transformers; the model type of exports before November 2026 is accepted."""
        check_code(args[0] if args else kwargs.get("pretrained_model_name_or_path"))
        values, rest = super().get_config_dict(*args, **kwargs)
        if values.get("model_type") == FORMER_MODEL_TYPE:
            values["model_type"] = cls.model_type
        return values, rest

    def to_diff_dict(self) -> dict:
        """As in transformers, with `tie_word_embeddings` in any case: classes differ in its default."""
        return {**super().to_diff_dict(), "tie_word_embeddings": self.tie_word_embeddings}

    def _check(self) -> None:
        unknown = sorted(set(self.layer_kinds) - set(LAYER_KINDS))
        if unknown:
            raise ValueError(f"layer_kinds has {unknown}: the kinds that this code knows are {list(LAYER_KINDS)}")
        if len(self.layer_kinds) != self.num_hidden_layers:
            raise ValueError(
                f"layer_kinds names {len(self.layer_kinds)} layers, num_hidden_layers is {self.num_hidden_layers}: "
                "give one kind for each layer"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}: change one of them"
            )
        words = self.size_words
        if words and (not all(words) or len({tuple(word) for word in words}) < len(words)):
            raise ValueError(
                "picture_shapes: each shape needs size words of its own, as the tokenizer spells rows*columns"
            )
        if self.vocab_size < self.image_token_offset + self.codebook_size:
            raise ValueError(
                f"vocab_size {self.vocab_size} is below image_token_offset + codebook_size = "
                f"{self.image_token_offset + self.codebook_size}: every code needs an embedding row. "
                "Tools that merge or resize cut off the rows beyond a tokenizer: merge without one, and resize nothing"
            )

    @property
    def size_words(self) -> list[list[int]]:
        """Ids that stand before the `<|vision_start|>` of each shape; none for square images."""
        return [list(shape["ids"]) for shape in self.picture_shapes or ()]

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Rows and columns of codes of each shape; none for square images."""
        return [tuple(shape["grid"]) for shape in self.picture_shapes or ()]

    def is_visual(self, ids):
        """[...] ids -> boolean mask of the same shape: which tokens the vision branch handles.

        `<|vision_start|>` is visual, because its position predicts the first code; `<|vision_end|>` is text.
        """
        return (ids >= self.image_token_offset) | (ids == self.vision_start_token_id)


UniXConfig.register_for_auto_class()
# transformers puts this file into sys.modules and not into its package, where dill looks, by which data sets send to workers
if __package__:
    setattr(import_module(__package__), __name__.rpartition(".")[2], sys.modules[__name__])
