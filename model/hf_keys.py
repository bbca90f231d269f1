"""Keys of a language model's config.json: used, without effect (with the reason), or refused.

Imported folders are checked by this table, so that no setting is dropped silently. Keys are those that the classes of
transformers 4.57.6 and 5.24.0 write, and those of published folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import MODEL_TYPES, ModelConfig
from model.families import FAMILIES, OTHERS
from pretrain.system.errors import UserError

USED = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "initializer_range",
    "max_position_embeddings",
)
"""Read by model/hf_source.py and model/rope.py."""

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Those that no config.json may leave out."""

WHOLE = (*SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings")
NUMBERS = ("rms_norm_eps", "initializer_range")
SWITCHES = ("tie_word_embeddings",)
"""Keys of USED by what their values are; model/rope.py looks at those of positions."""

PUBLISHED = (
    "num_vision_encode_layers",
    "num_vision_decode_layers",
    "real_text_vocab_size",
    "vision_vocab_size",
    "vision_start_id",
)
"""Used of the published Uni-X models only."""

OF_EXPORTS = ("skills", "sample_prompts", "picture_shapes", "text_model_type")
"""Of our exports: what the training taught, captions for the server's page, shapes of the data, and the class for its text.
They change no logits; a run that starts there has those of its own data."""

PLAIN: dict[str, tuple] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "pruned_heads": ({},),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "text_logits_only": (False,),  # of our exports
    "add_sep_for_vis": (0,),  # of the published Uni-X code, from here on
    "add_share_ffn": (0,),
    "all_modal_visible": (0,),
    "attn_v_q_heads": (0,),
    "ffn_share_size": (0,),
    "ffn_vision_size": (0,),
    "skip_connection_loc": (-1,),
    "use_share_attn": (1,),
    "use_share_ffn": (1,),
}
"""Keys that change what the model computes -> the values that ours computes too; null is always one."""

REMEDIES = {
    "use_sliding_window": "a sliding window is not supported: set it to false if texts are shorter than the window",
    "quantization_config": "quantised weights cannot be trained on: save the folder in bf16 first",
    "text_logits_only": "a model with picture codes taken out of its logits is for text benchmarks: set it to false",
}

HARMLESS: dict[str, tuple[str, ...]] = {
    "notes of whoever saved the folder": (
        "_name_or_path",
        "_commit_hash",
        "transformers_version",
        "architectures",
        "unsloth_version",
        "unsloth_fixed",
    ),
    "how weights are stored: each says so itself": ("dtype", "torch_dtype", "use_bfloat16"),
    "what a call of transformers returns": (
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "return_dict_in_generate",
        "torchscript",
        "use_cache",
    ),
    "which kernel or how much memory, not which numbers": (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "chunk_size_feed_forward",
        "pretraining_tp",
        "tf_legacy_loss",
    ),
    "dropout in training is the run's to choose": ("attention_dropout",),
    "only read with use_sliding_window": ("sliding_window", "max_window_layers"),
    "heads of classifiers, whose weights would be refused by name": (
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "classifier_dropout",
    ),
    "tokens of generation: ours are those of tokenizer.json": (
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "bad_words_ids",
        "suppress_tokens",
        "begin_suppress_tokens",
        "tokenizer_class",
        "prefix",
    ),
    "encoders and decoders of other models, which these classes never read": (
        "is_decoder",
        "cross_attention_hidden_size",
        "tie_encoder_decoder",
    ),
    "how a text is sampled, which is asked for when one is": (
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "num_return_sequences",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
    ),
}
"""Reason -> the keys that have no effect on logits, for it."""

WITHOUT_EFFECT = {key: reason for reason, keys in HARMLESS.items() for key in keys}


NOT_SAMPLING = (
    "transformers_version",
    "_from_model_config",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "do_sample",
)
"""Keys of a generation_config.json that an export has of its own, or that change no text."""


def unkept_generation(values: Mapping[str, Any]) -> dict[str, Any]:
    """Generation settings of a generation_config.json that an export does not keep: it samples as requests say."""
    return {key: value for key, value in values.items() if value is not None and key not in NOT_SAMPLING}


def plain_keys(kind: str) -> dict[str, tuple]:
    """PLAIN with the keys of a family, `attention_bias` among them: supported as its layers are."""
    family = FAMILIES.get(kind)
    return PLAIN | ({"attention_bias": (family.attention_bias,), **family.plain} if family else {})


def check_keys(values: Mapping[str, Any], name: Path | str) -> None:
    """Raises UserError, in one line, for the first key that this model does not compute; `name` is the file's name in
    errors."""
    kind = values.get("model_type")
    if kind in OTHERS:
        known = ", ".join(FAMILIES)
        raise UserError(f"{name}: model_type is {kind!r}, {OTHERS[kind]}, which is not supported: take one of {known}")
    if kind not in FAMILIES and kind not in MODEL_TYPES:
        raise UserError(f"{name}: model_type is {kind!r}: {', '.join(FAMILIES)} or uni_x is needed")
    _check_values(values, name)
    for key in ("skills", "sample_prompts") if kind in MODEL_TYPES else ():
        value = values.get(key)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(each, str) and each for each in value)
        ):
            raise UserError(f"{name}: {key} is {_shortened(value)}: a list of texts is needed: mend or remove it")
    published = "num_vision_encode_layers" in values
    used = {
        *USED,
        *(PUBLISHED if published else ()),
        *((*ModelConfig.__dataclass_fields__, *OF_EXPORTS) if kind in MODEL_TYPES else ()),
    }
    plain = plain_keys(kind)
    of_family = FAMILIES[kind].plain if kind in FAMILIES else {}
    code_of_its_own = published or kind in MODEL_TYPES
    for key, value in values.items():
        harmless = key in WITHOUT_EFFECT and key not in of_family  # its class reads other keys
        if value is None or key in used or harmless or (key == "auto_map" and code_of_its_own):
            continue
        if key == "layer_types":
            if not isinstance(value, list) or any(layer != "full_attention" for layer in value):
                found = f"layer_types has {_shortened(value)}"
                raise UserError(f"{name}: {found}: only full_attention is supported, take another model")
        elif key in plain:
            if value not in plain[key]:
                why = REMEDIES.get(key, "this model has no such thing, take another one")
                if key in of_family or key not in PLAIN:
                    supported = " or ".join(repr(each) for each in plain[key])
                    why = f"{kind} is supported with {supported} only, take another model"
                raise UserError(f"{name}: {key} is {value!r}: {why}")
        else:
            unknown = (
                f"({_shortened(value)}) is not known here, and may change what is computed: remove it if it does not"
            )
            raise UserError(f"{name}: {key}: {REMEDIES[key]}" if key in REMEDIES else f"{name}: {key} {unknown}")


def _check_values(values: Mapping[str, Any], name: Path | str) -> None:
    """Raises UserError for a value of the wrong type, as a number in quotes: Python would convert it."""
    kinds = (
        (WHOLE, "a whole number above 0", lambda value: type(value) is int and value > 0),
        (NUMBERS, "a number above 0", lambda value: type(value) in (int, float) and 0 < value < float("inf")),
        (SWITCHES, "true or false", lambda value: type(value) is bool),
    )
    for keys, wanted, fits in kinds:
        for key in keys:
            value = values.get(key)
            if not (fits(value) or value is None and key not in SIZES):
                found = f"{key} is {_shortened(value)}"
                raise UserError(f"{name}: {found}: {wanted} is needed: is the download complete?")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
