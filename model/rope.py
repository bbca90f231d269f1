"""Rotary settings of a config.json, in any of three spellings, as a base and a scaling.

transformers 4 writes `rope_theta` and `rope_scaling` (with `type` or `rope_type`), transformers 5 writes all of it into
`rope_parameters` and no other key (seen with 4.57.6 and 5.24.0). 4.57 opens a folder of 5 with the base 10,000 and no
scaling, without a word: here every spelling is read, and two that disagree are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretrain.system.errors import UserError

SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kinds of scaling that ours computes -> the settings that each must have."""

UNSUPPORTED = {
    "dynamic": "changes all positions with the length of a text: remove it, up to max_position_embeddings it does nothing",
    "longrope": "has factors of its own for every frequency, which ours has not: take another model",
    "su": "is LongRoPE, whose factors for every frequency ours has not: take another model",
    "mrope": "gives pictures positions in three directions: take a language model",
    "proportional": "leaves a part of each head without positions: take another model",
}
OPTIONAL = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
WITHOUT_EFFECT = ("factor", "original_max_position_embeddings")
"""Settings that stand beside `default`, which reads none."""


def rope_of(values: Mapping[str, Any], default_theta: float, name: str) -> tuple[float, dict[str, Any] | None]:
    """(base, scaling or None) of a config.json's values; `name` is the file's name in errors.

    A scaling is {"rope_type": ..., settings}. Raises UserError where two spellings disagree, for a kind or a setting that
    is not known, and for a value that is no number.
    """
    found = [
        (key, dict(values[key])) for key in ("rope_parameters", "rope_scaling") if isinstance(values.get(key), Mapping)
    ]
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(values.get(key), Mapping | None):
            raise UserError(f"{name}: {key} is {values[key]!r}: an object or null is needed, as transformers writes it")
    given = {"rope_theta": values.get("rope_theta")}
    scalings = {}
    for key, settings in found:
        if any(isinstance(value, Mapping) for value in settings.values()):
            raise UserError(
                f"{name}: {key} differs by kind of layer: this model has one kind of positions, take another one"
            )
        given[f"{key}.rope_theta"] = settings.pop("rope_theta", None)
        scalings[key] = _scaling(settings, f"{name}: {key}", values.get("max_position_embeddings"))
    # as numbers: 1000000 and 1000000.0 are one base
    thetas = {key: _number(value, f"{name}: {key}") for key, value in given.items() if value is not None}
    for what, spelled in (("base", thetas), ("scaling", scalings)):
        if len({repr(value) for value in spelled.values()}) > 1:
            spellings = ", ".join(f"{key} {value}" for key, value in spelled.items())
            raise UserError(f"{name}: two spellings of the rotary {what} disagree ({spellings}): remove the wrong one")
    return next(iter(thetas.values()), float(default_theta)), next(iter(scalings.values()), None)


def _scaling(settings: dict[str, Any], name: str, positions: int | None) -> dict[str, Any] | None:
    """Scaling settings in one spelling: each is used, or refused."""
    kinds = {settings.pop(key) for key in ("rope_type", "type") if settings.get(key) is not None}
    settings = {key: value for key, value in settings.items() if value is not None and key not in ("rope_type", "type")}
    if len(kinds) > 1:
        raise UserError(
            f"{name}: rope_type and type disagree ({', '.join(sorted(map(str, kinds)))}): remove the wrong one"
        )
    kind = kinds.pop() if kinds else "default"
    if settings.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{name}: partial_rotary_factor is not 1: positions turn whole heads here, take another model")
    if kind not in SCALINGS:
        why = UNSUPPORTED.get(kind, f"is not known, {', '.join(SCALINGS)} are: take another model")
        raise UserError(f"{name}: rope_type {kind!r} {why}")
    if kind == "default":
        settings = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    if kind == "yarn" and positions:
        settings.setdefault("original_max_position_embeddings", positions)
        settings.setdefault("factor", positions / settings["original_max_position_embeddings"])
    needed, optional = SCALINGS[kind], OPTIONAL.get(kind, ())
    if unknown := sorted(set(settings) - set(needed) - set(optional)):
        setting = f"{unknown[0]} is {settings[unknown[0]]!r}"
        raise UserError(f"{name}: {setting}: {kind} positions have no such setting here: remove it if it has no effect")
    if missing := [key for key in needed if key not in settings]:
        raise UserError(
            f"{name}: {kind} positions need {missing[0]}, which is not there: add it, as the base model's config.json has it"
        )
    if kind == "default" or (kind == "linear" and settings["factor"] == 1):
        return None
    made = {
        key: settings[key] if isinstance(settings[key], bool) else _number(settings[key], f"{name}: {key}")
        for key in (*needed, *optional)
        if key in settings
    }
    if kind == "llama3" and made["low_freq_factor"] >= made["high_freq_factor"]:
        low, high = made["low_freq_factor"], made["high_freq_factor"]
        raise UserError(
            f"{name}: low_freq_factor {low} is not below high_freq_factor {high}: take both from the base model's config.json"
        )
    return {"rope_type": kind, **made}


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UserError(f"{name} is {value!r}: a number above 0 is needed")
    return float(value)
