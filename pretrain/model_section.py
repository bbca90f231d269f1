"""The `model` section of a run's YAML, from a model: what a run that starts from given weights must say."""

from __future__ import annotations

from model.config import ModelConfig, layer_kinds
from model.families import FAMILIES
from model.layer_kinds import SHARED
from pretrain.config import ModelSection


def section_of(config: ModelConfig) -> ModelSection:
    """The section that makes this model. Raises ValueError for layer kinds or switches that no section can say."""
    flavours = [
        family.flavour
        for family in FAMILIES.values()
        if (family.attention_bias, family.qk_norm) == (config.attention_bias, config.qk_norm)
    ]
    if not flavours:
        raise ValueError(f"no flavour has attention_bias {config.attention_bias} and qk_norm {config.qk_norm}")
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "tie_word_embeddings",
        "rope_theta",
        "rms_norm_eps",
        "initializer_range",
        "image_token_offset",
        "max_position_embeddings",
    )
    return ModelSection(
        **{name: getattr(config, name) for name in names},
        **_kinds_of(config.layer_kinds),
        flavour=flavours[0],
        rope_scaling=config.rope_scaling or {},
    )


def _kinds_of(kinds: tuple[str, ...]) -> dict:
    """shallow, deep, every and kind of a list of layer kinds."""
    apart = sorted(set(kinds) - {SHARED})
    if not apart:
        return {}
    if len(apart) == 1:
        (kind,) = apart
        shallow = next((index for index, found in enumerate(kinds) if found != kind), len(kinds))
        deep = next((index for index, found in enumerate(kinds[shallow:][::-1]) if found != kind), 0)
        choices = [{"shallow": shallow, "deep": deep}, *({"every": every} for every in range(1, len(kinds) + 1))]
        for choice in choices:
            if layer_kinds(len(kinds), kind=kind, **choice) == kinds:
                return {"kind": kind, **choice}
    raise ValueError(f"layers are {list(kinds)}, which no section can say")


def section_yaml(config: ModelConfig) -> str:
    """The section as YAML, to be pasted into the configuration of a run."""
    import dataclasses

    import yaml

    said = "# the model section of a run that starts from these weights: paste it in place of the one there\n"
    try:
        section = section_of(config)
    except ValueError as error:
        return f"{said}# it cannot be written: {error}\n"
    defaults = {spec.name: spec.default for spec in dataclasses.fields(ModelSection)}
    values = {
        key: value
        for key, value in dataclasses.asdict(section).items()
        if value != {} and (value != defaults[key] or key not in ("shallow", "deep", "every"))
    }
    return said + yaml.safe_dump({"model": values}, sort_keys=False)
