"""Vocabulary, prompt templates and model configuration of a run, from the data's manifest and the configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.config import ModelConfig, layer_kinds
from model.families import BY_FLAVOUR
from model.prompts import PromptTemplates
from model.rope import rope_of
from model.shapes import framing_of, size_word
from model.tokenizer_file import read_tokenizer
from pretrain.config import ModelSection
from pretrain.inputs import tokenizer_file
from pretrain.model_section import SAME_IN_BOTH
from pretrain.system.errors import UserError

CONTEXT = 32_768  # default maximum length in tokens
ROW_MULTIPLE = 64  # embedding rows are rounded up to this, so that tensor parallelism divides them


def load_tokenizer(folder: str | Path, manifest: dict):
    """Load the text tokenizer of `folder`, which must be the one that made the shards. Raises UserError."""
    path = tokenizer_file(folder)
    tokenizer, data = read_tokenizer(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest["tokenizer"]["sha256"]:
        raise UserError(
            f"{path} is not the tokenizer that made the shards (sha256 {digest[:12]}, the shards have "
            f"{manifest['tokenizer']['sha256'][:12]}): set data.tokenizer to that one"
        )
    return tokenizer


def special_id(tokenizer, *names: str) -> int:
    """Id of the first of `names` that the tokenizer has. Raises UserError if it has none."""
    for name in names:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return token
    raise UserError(f"the tokenizer has none of {', '.join(names)}: add it as a special token")


def end_of_text_id(tokenizer, flavour: str) -> int:
    """Id of the flavour's end-of-text token. Raises UserError if the tokenizer has none, with the flavour whose it has."""
    ours = BY_FLAVOUR[flavour]
    if any(tokenizer.token_to_id(name) is not None for name in ours.end_of_text):
        return special_id(tokenizer, *ours.end_of_text)
    fitting = [
        other.flavour
        for other in BY_FLAVOUR.values()
        if (other.attention_bias, other.qk_norm) == (ours.attention_bias, ours.qk_norm)
        and any(tokenizer.token_to_id(name) is not None for name in other.end_of_text)
    ]
    remedy = f"set model.flavour to {' or '.join(fitting)}" if fitting else "add it as a special token"
    names = ", ".join(ours.end_of_text)
    raise UserError(f"model.flavour is {flavour}: the tokenizer has none of its end-of-text tokens ({names}): {remedy}")


def model_config(section: ModelSection, tokenizer, manifest: dict) -> ModelConfig:
    """Model configuration: sizes from the configuration, ids from the tokenizer, the codebook from the shards."""
    text_rows = tokenizer.get_vocab_size()
    offset = section.image_token_offset or text_rows
    if offset < text_rows and offset <= max(special_id(tokenizer, "<|vision_start|>", "<|vision_end|>"), 0):
        raise UserError(f"model.image_token_offset {offset} is below the special tokens: codes would replace them")
    start, end = special_id(tokenizer, "<|vision_start|>"), special_id(tokenizer, "<|vision_end|>")
    eos = end_of_text_id(tokenizer, section.flavour)
    return sized_config(section, offset, manifest["vq"]["codebook_size"], (start, end, eos))


def sized_config(section: ModelSection, offset: int, codes: int, special: tuple[int, int, int]) -> ModelConfig:
    """Model configuration with `codes` image tokens from id `offset` on.

    `special`: ids of `<|vision_start|>`, `<|vision_end|>` and `<|endoftext|>`.
    """
    start, end, eos = special
    values = {"rope_scaling": dict(section.rope_scaling), "max_position_embeddings": section.max_position_embeddings}
    _, scaling = rope_of(values, section.rope_theta, "model")
    family = BY_FLAVOUR[section.flavour]
    return ModelConfig(
        **{name: getattr(section, name) for name in SAME_IN_BOTH},
        vocab_size=-(-(offset + codes) // ROW_MULTIPLE) * ROW_MULTIPLE,
        image_token_offset=offset,
        codebook_size=codes,
        vision_start_token_id=start,
        vision_end_token_id=end,
        eos_token_id=eos,
        layer_kinds=layer_kinds(section.num_hidden_layers, section.shallow, section.deep, section.kind, section.every),
        attention_bias=family.attention_bias,
        qk_norm=family.qk_norm,
        max_position_embeddings=section.max_position_embeddings or CONTEXT,
        rope_scaling=scaling,
    )


def prompt_templates(templates: PromptTemplates, manifests: Sequence[dict]) -> PromptTemplates:
    """Prompt templates for the image shapes and the image tokenizer of the shards."""
    framings = [framing_of(manifest["vq"]) for manifest in manifests if manifest["counts"]["pictures"]]
    framing = max(framings or [framing_of(manifests[0]["vq"])], key=lambda one: len(one.grids))
    shapes = framing.grids if len(framing.grids) > 1 else ()
    fit = "pad" if framing.pad else "crop"
    fingerprint = manifests[0]["vq"]["fingerprint"]
    return replace(templates, grid=framing.grids[0], vq_fingerprint=fingerprint, shapes=shapes, fit=fit)


def check_shapes(path: str | Path, manifest: dict, templates: PromptTemplates) -> None:
    """Check that the images of a dataset have shapes of these templates. Raises UserError."""
    grids = framing_of(manifest["vq"]).grids
    known = ", ".join(map(size_word, templates.grids))
    if manifest["counts"]["pictures"] and grids not in (templates.grids, templates.grids[:1]):
        raise UserError(
            f"{path} has pictures of {', '.join(map(size_word, grids))} codes (rows*columns), and the model knows "
            f"{known}: shard with the --shapes and --image-size of its training data"
        )
