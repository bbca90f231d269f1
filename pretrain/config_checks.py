"""Validation of a configuration: ranges, choices, combinations that are excluded, and settings without effect."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from model import kernels
from model.families import BY_FLAVOUR
from model.layer_kinds import KINDS
from pretrain.engines import ENGINES, that_have
from pretrain.system.errors import UserError
from pretrain.system.threads import usable_cores
from pretrain.system.words import is_unicode, shown

if TYPE_CHECKING:
    from pretrain.config import Origin, TrainConfig

CHOICES = {
    "run.precision": ("fp32", "bf16"),
    "run.engine": tuple(ENGINES),
    "run.kernels": kernels.NAMES,
    "run.fp8": ("none", "delayed", "current"),
    "run.resume": ("auto", "never"),
    "model.flavour": tuple(BY_FLAVOUR),
    "model.kind": tuple(KINDS),
    "optim.decay": ("cosine", "linear", "constant"),
    "zero.stage": (1, 2, 3),
    "parallel.gradients": ("fp32", "bf16"),
}
POSITIVE = (
    "run.steps",
    "model.hidden_size",
    "model.intermediate_size",
    "model.num_hidden_layers",
    "model.num_attention_heads",
    "model.num_key_value_heads",
    "model.head_dim",
    "data.sequence_length",
    "data.row_multiple",
    "data.global_batch_size",
    "checkpoint.every",
    "checkpoint.keep",
    "log.every",
    "log.heldout_rows",
    "log.conflict_targets",
    "parallel.tensor",
    "parallel.pipeline",
    "resilience.window",
    "run.timeout",
)
ABSENT = {  # names that users of megatron-core may try
    "context": "context parallelism is not part of this project: use parallel.sequence and parallel.recompute",
    "context_parallel": "context parallelism is not part of this project: use parallel.sequence and parallel.recompute",
    "expert": "there are no expert layers to be parallel over: use parallel.tensor and parallel.pipeline",
    "expert_parallel": "there are no expert layers to be parallel over: use parallel.tensor and parallel.pipeline",
    "fp8": "FP8 is run.fp8=delayed or run.fp8=current, beside run.precision=bf16 and run.kernels=transformer_engine",
}
SHARES = (
    "data.text_to_image",
    "data.unconditional",
    "data.first_text",
    "data.code_noise",
    "data.drop_instruction",
    "data.drop_source",
    "data.drop_both",
    "data.shared_noise",
    "optim.dropout",
)
ABOVE_ZERO = ("model.rope_theta", "model.rms_norm_eps", "optim.eps", "data.stages.tokens")
LARGEST = 2**63 - 1  # of any whole number: the libraries below keep them in 64 bits
LARGEST_FLOAT = 3.4e38
AT_MOST = {  # where more is a slip of the keyboard that would end in an error of a library, or use up the memory
    "run.threads": 10_000,
    "run.timeout": 1e8,
    "data.workers": 1_000,
    "data.sequence_length": 10**9,
    "model.hidden_size": 10**6,
    "model.intermediate_size": 10**7,
    "model.num_hidden_layers": 10_000,
    "model.num_attention_heads": 10_000,
    "model.num_key_value_heads": 10_000,
    "model.head_dim": 10_000,
    "model.image_token_offset": 10**8,
}
BELOW_ONE = ("optim.beta1", "optim.beta2", "optim.dropout")


def check(config: TrainConfig, origin: Origin) -> None:
    """Validate a configuration. Raises UserError for a value out of range, or excluded by another one."""
    _check_numbers(config, origin)
    _check_texts(config, origin)
    if config.model.head_dim % 2:
        message = f"{origin.of('model.head_dim')}: model.head_dim is {config.model.head_dim}"
        raise UserError(f"{message}: positions turn pairs of a head's dimensions: an even number is needed")
    for key, choices in CHOICES.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value in ABSENT:
            raise UserError(f"{origin.of(key)}: {key} is {value!r}: {ABSENT[value]}")
        if value not in choices:
            raise UserError(f"{origin.of(key)}: {key} is {value!r}: choose {' or '.join(map(str, choices))}")
    _check_kernels(config, origin)
    if config.parallel.gradients == "bf16" and config.run.precision != "bf16":
        raise UserError(
            f"{origin.of('parallel.gradients')}: parallel.gradients is bf16, and run.precision is {config.run.precision}: "
            "gradients have the precision of the weights at least: set run.precision=bf16, or leave it out"
        )
    _check_conflict(config, origin)
    if not config.data.sources:
        raise UserError(f"{origin.of('data.sources')}: data.sources is empty: name at least one folder of code shards")


def _check_numbers(config: TrainConfig, origin: Origin) -> None:
    """Check the bounds of each number."""
    for key, value in _numbers(config):
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{origin.of(key)}: {key} is {shown(value)}: it must be below 2^63")
        if not math.isfinite(value):
            raise UserError(f"{origin.of(key)}: {key} is {value}: it must be finite")
        if abs(value) > LARGEST_FLOAT:
            raise UserError(f"{origin.of(key)}: {key} is {value}: it must be below {LARGEST_FLOAT:g}, as float32 is")
        if value < 0:
            raise UserError(f"{origin.of(key)}: {key} is {value}: it must not be negative")
        if key in POSITIVE and value < 1:
            raise UserError(f"{origin.of(key)}: {key} is {value}: it must be at least 1")
        if key in SHARES and value > 1:
            raise UserError(f"{origin.of(key)}: {key} is {value}: it is a share, 0 to 1")
        if value > AT_MOST.get(key, math.inf):
            raise UserError(f"{origin.of(key)}: {key} is {value}: it must be at most {AT_MOST[key]:,.0f}")
        if re.sub(r"\[\d+\]", "", key) in ABOVE_ZERO and value == 0:
            raise UserError(f"{origin.of(key)}: {key} is {value}: it must be above 0")
        if key in BELOW_ONE and value >= 1:
            raise UserError(f"{origin.of(key)}: {key} is {value}: it must be below 1")


def _check_texts(config: TrainConfig, origin: Origin) -> None:
    """Check paths, and that each text can be written and named to the file system."""
    for key, value in _leaves(config):
        if not isinstance(value, str):
            continue
        if "\0" in value or not is_unicode(value):
            raise UserError(
                f"{origin.of(key)}: {key} is {shown(value)}: no file or text has such a character: remove it"
            )
    for key, path in (("run.folder", config.run.folder), ("data.cache", config.data.cache)):
        if "://" in path:
            raise UserError(f"{origin.of(key)}: {key} is {shown(path)}: no URL can be written to: give a folder")
    if not config.run.folder:
        raise UserError(f"{origin.of('run.folder')}: run.folder is empty: say where the run is to be")
    for number, source in enumerate(config.data.sources):
        if not source.path:
            key = f"data.sources[{number}].path"
            raise UserError(f"{origin.of(key)}: {key} is empty: give a folder of code shards, or its URL")


def _check_conflict(config: TrainConfig, origin: Origin) -> None:
    """Check what the measurement of gradient conflict requires."""
    if config.log.conflict_every and not config.data.heldout:
        raise UserError(
            f"{origin.of('log.conflict_every')}: log.conflict_every is {config.log.conflict_every}: it measures on data.heldout, which is empty"
        )
    if config.log.conflict_every and config.parallel.tensor * config.parallel.pipeline > 1:
        raise UserError(
            f"{origin.of('log.conflict_every')}: log.conflict_every is {config.log.conflict_every}: it needs the whole model in a process, "
            "parallel.tensor and parallel.pipeline 1; tools/measure_conflict.py measures the checkpoints of any layout"
        )
    if config.log.conflict_every and not ENGINES[config.run.engine].whole_weights:
        raise UserError(
            f"{origin.of('log.conflict_every')}: log.conflict_every is {config.log.conflict_every}: it needs whole weights in a process, "
            f"run.engine {that_have('whole_weights')}; tools/measure_conflict.py measures the checkpoints of any engine"
        )


def _check_kernels(config: TrainConfig, origin: Origin) -> None:
    """Check what transformer-engine's kernels exclude; whether the package is installed is checked when a run
    starts."""
    run, fused = config.run, config.run.kernels == kernels.TRANSFORMER_ENGINE
    head, share = config.model.head_dim, config.parallel.tensor if config.parallel.sequence else 1
    if run.fp8 != "none" and not fused:
        raise UserError(
            f"{origin.of('run.fp8')}: run.fp8 is {run.fp8!r}: FP8 products are transformer-engine's: set "
            "run.kernels=transformer_engine, or run.fp8=none"
        )
    if not fused:
        return
    who = f"{origin.of('run.kernels')}: run.kernels is {run.kernels!r}"
    if run.precision != "bf16":
        raise UserError(
            f"{who}: its attention takes half precision only, and run.precision is {run.precision}: set "
            "run.precision=bf16, or run.kernels=torch"
        )
    if head % 8 or head > kernels.WIDEST_HEAD:
        raise UserError(
            f"{who}: its attention takes heads of a multiple of 8 up to {kernels.WIDEST_HEAD}, and model.head_dim is "
            f"{head}: set run.kernels=torch"
        )
    if not ENGINES[run.engine].other_kernels:
        raise UserError(
            f"{who}: it was not made to work with run.engine {run.engine}: set run.engine={that_have('other_kernels')}, or "
            "run.kernels=torch"
        )
    rows = config.data.row_multiple
    if run.fp8 != "none" and rows % (kernels.FP8_MULTIPLE * share):
        raise UserError(
            f"{origin.of('run.fp8')}: run.fp8 is {run.fp8!r}: a product's tokens must be a multiple of "
            f"{kernels.FP8_MULTIPLE} on every rank, and data.row_multiple is {rows}: set it to a multiple of "
            f"{kernels.FP8_MULTIPLE * share}"
        )


def _unread(config: TrainConfig) -> Iterator[tuple[str, str, bool]]:
    """(keys, the setting that switches them off, whether it does)."""
    data, resilience, log = config.data, config.resilience, config.log
    yield "optim.final_lr", "optim.decay is constant", config.optim.decay == "constant"
    yield "data.cache_limit", "data.cache is empty", not data.cache
    yield "data.unconditional", "data.text_to_image is 0", not data.text_to_image
    yield "log.heldout_every log.heldout_rows", "data.heldout is empty", not data.heldout
    yield "log.conflict_targets", "log.conflict_every is 0", not log.conflict_every
    yield "resilience.hang_seconds", "resilience.hang_factor is 0", not resilience.hang_factor
    yield "resilience.rollbacks", "resilience.bad_steps is 0", not resilience.bad_steps
    yield "resilience.window", "spike and bad_steps are 0", not (resilience.spike or resilience.bad_steps)
    staged = ENGINES[config.run.engine].zero_section and config.zero.stage != 3
    yield "zero.init zero.param_persistence_threshold", f"zero.stage is {config.zero.stage}", staged


def without_effect(config: TrainConfig) -> Iterator[str]:
    """Settings that have no effect with the others, and implausible values, a line each."""
    for keys, why, off in _unread(config):
        for section, _, name in (key.partition(".") for key in keys.split() if off):
            value, usual = (getattr(part, name) for part in (getattr(config, section), type(getattr(config, section))))
            if value != usual:
                yield f"{section}.{name} {value}: {why}, so it is not read"
    yield from _odd_sources(config)
    yield from _odd_rates(config)
    model, log, cores = config.model, config.log, usable_cores()
    engine = config.run.engine
    if not ENGINES[engine].zero_section and config.zero != type(config.zero)():
        wanted = that_have("zero_section")
        yield f"zero: run.engine is {engine}, which reads none of it: set run.engine={wanted}, or leave it out"
    if not config.optim.decay_embeddings and not config.optim.weight_decay:
        yield "optim.decay_embeddings false: optim.weight_decay is 0, so nothing has any"
    if log.samples_every and not log.sample_prompts:
        yield f"log.samples_every {log.samples_every}: log.sample_prompts is empty, so no samples are drawn"
    if model.kind != "separated" and not (model.shallow or model.deep or model.every):
        yield f"model.kind {model.kind}: no layer is of it: set model.shallow, model.deep or model.every"
    if config.run.threads > cores:
        yield f"run.threads {config.run.threads}: {cores} cores may be used: more threads than cores wait for each other"
    if 0 < model.max_position_embeddings < config.data.sequence_length:
        yield (
            f"model.max_position_embeddings {model.max_position_embeddings}: rows have {config.data.sequence_length} tokens, and "
            "what a longer document teaches is beyond what the export may be asked for: raise it unless all are shorter"
        )
    urls = [source.path for source in config.data.sources if "://" in source.path]
    if config.data.cache and not urls and "://" not in config.data.heldout:
        yield f"data.cache {config.data.cache}: no dataset is at a URL, so nothing is kept there"


def _odd_sources(config: TrainConfig) -> Iterator[str]:
    """Sources that are not used as they are written down."""
    sources, paths = config.data.sources, [source.path for source in config.data.sources]
    shared = any(source.share for source in sources)
    for number, source in enumerate(sources):
        key = f"data.sources[{number}]"
        if shared and not source.share:
            yield f"{key}.share 0: others have a share, so nothing of {source.path} is in the epochs: give it one, or leave it out"
        elif shared and source.weight != 1:
            yield f"{key}.weight {source.weight:g}: sources have shares, so weights do not count: leave it out"
        if source.path in paths[:number]:
            yield f"{key}.path {source.path}: stands twice, and each document of it is used as often: set its weight instead"


def _odd_rates(config: TrainConfig) -> Iterator[str]:
    """Learning rates that are not what a schedule is for."""
    optim, steps = config.optim, config.run.steps
    if not optim.lr:
        yield "optim.lr 0.0: the weights are hardly changed, or not at all: set it, unless that is meant"
    elif optim.decay != "constant" and optim.final_lr > optim.lr:
        yield f"optim.final_lr {optim.final_lr:g}: is above optim.lr {optim.lr:g}, so the rate rises from there"
    if optim.warmup_steps >= steps:
        yield f"optim.warmup_steps {optim.warmup_steps}: the run has {steps} steps, so the rate never falls from optim.lr"


def _numbers(value) -> Iterator[tuple[str, float]]:
    """(dotted key, number) of every number in a configuration."""
    for key, leaf in _leaves(value):
        if isinstance(leaf, (int, float)) and not isinstance(leaf, bool):
            yield key, leaf


def _leaves(value, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of everything in a configuration that is neither a section nor a list."""
    if dataclasses.is_dataclass(value):
        for spec in dataclasses.fields(value):
            yield from _leaves(getattr(value, spec.name), f"{key}.{spec.name}" if key else spec.name)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, value
