"""Configuration of a run: one YAML file, typed dataclasses behind it, dotted overrides on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.config_checks import ABSENT, check
from pretrain.config_names import FORMER_NAMES, OTHER_NAMES, overrides_with_current_names, with_current_names
from pretrain.parallel import ParallelLayout
from pretrain.system.disk import tell
from pretrain.system.errors import UserError
from pretrain.system.strict_yaml import read_yaml
from pretrain.system.words import shown

MOST_BYTES = 4 << 20  # of a configuration file


@dataclass(frozen=True)
class RunSection:
    """Run folder, engine and number of steps."""

    folder: str  # run folder: resolved config, metrics, samples, checkpoints
    steps: int  # optimizer steps in all
    seed: int = 0  # seed of the weights, of the row plan and of the samples
    engine: str = "megatron"  # megatron (megatron-core's optimizer and schedules) or zero3 (DeepSpeed ZeRO)
    precision: str = "fp32"  # fp32, or bf16 with fp32 master weights
    kernels: str = (
        "torch"  # torch, or transformer_engine where it is installed: same weights and checkpoints, other rounding
    )
    fp8: str = (
        "none"  # FP8 of transformer_engine's matrix products: none, or delayed or current scaling; never of the LM head
    )
    threads: int = 0  # torch threads (0: the available cores)
    deterministic: bool = False  # deterministic kernels on GPUs, which are slower
    resume: str = (
        "auto"  # auto: resume from the newest checkpoint that verifies, else start; never: refuse a folder that has any
    )
    timeout: float = 1800.0  # collective timeout in seconds
    init_from: str = ""  # checkpoint for the initial weights of a new run, as tools/convert_from_hf.py makes one


@dataclass(frozen=True)
class ModelSection:
    """Sizes of the model. The vocabulary follows from the tokenizer and the shards."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    shallow: int = 0  # layers of `kind` at the input end
    deep: int = 0  # layers of `kind` at the output end
    every: int = 0  # instead of shallow and deep: the last layer of each so many is of `kind` (1: all)
    kind: str = "separated"  # separated (Uni-X), mot or moe_hard; the other layers are shared
    flavour: str = "qwen2.5"  # qwen2.5 (bias on q, k, v), qwen3 (norms on q and k) or llama (neither)
    tie_word_embeddings: bool = True
    rope_theta: float = 1_000_000.0
    rope_scaling: dict = field(
        default_factory=dict
    )  # RoPE scaling as in config.json: rope_type, factor, ... ({}: none)
    max_position_embeddings: int = 0  # maximum sequence length of the export, in tokens (0: 32,768)
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    image_token_offset: int = 0  # id of code 0 (0: the tokenizer's vocabulary size)


@dataclass(frozen=True)
class SourceSection:
    """One dataset of code shards."""

    path: str  # folder or URL
    weight: float = 1.0  # times that each document is used in an epoch
    share: float = 0.0  # share of an epoch's tokens; if any source has one, weights do not count


@dataclass(frozen=True)
class StageSection:
    """A training stage before the epochs begin, with a data mixture of its own."""

    tokens: float  # length of the stage in tokens as trained on, with prompts and turn markup
    shares: tuple[float, ...]  # share of each of data.sources, in order


@dataclass(frozen=True)
class DataSection:
    """Datasets, sequence length, global batch size, prompt templates and packing."""

    tokenizer: str  # folder with tokenizer.json
    vq: str  # image tokenizer of the samples: a name or a folder; must be the one that made the shards
    sources: tuple[SourceSection, ...]
    stages: tuple[StageSection, ...] = ()  # stages before the epochs: a curriculum
    heldout: str = ""  # folder or URL of held-out code shards
    cache: str = ""  # local cache folder of each node for datasets at URLs
    cache_limit: float = 0.0  # GiB of shards that the cache keeps (0: all)
    prompt_templates: str = (
        ""  # prompt templates of captioned pictures: a name in pretrain/prompt_templates or a file ('': pretraining's)
    )
    sequence_length: int = 1024  # tokens of a packed sequence (row)
    row_multiple: int = 8  # each modality is padded to a multiple of this (tensor-parallel size, or more)
    global_batch_size: int = 8  # packed sequences (microbatches) per step, over all ranks
    workers: int = 0  # loader worker processes per rank
    text_to_image: float = 0.5  # share of captioned pictures trained as text-to-image; the others train captioning
    unconditional: float = 0.1  # share of those with the unconditional prompt (classifier-free guidance dropout)
    first_text: float = (
        0.0  # share of draws that take a document's first text; the others take any text with equal chance
    )
    code_noise: float = 0.0  # code noise: share of generated pictures with some input codes, from none to all, replaced
    train_on_prompts: bool = False  # whether the prompt of a picture has a loss, too
    drop_instruction: float = 0.0  # share of edits without their instruction, for guidance of the source picture
    drop_source: float = 0.0  # share of edits without their source picture, drawn independently
    drop_both: float = 0.0  # share of edits without both, in addition to those by chance
    shared_noise: float = (
        0.0  # code noise of edits: share with some codes replaced by random ones, the same in all pictures
    )


@dataclass(frozen=True)
class OptimSection:
    """AdamW, learning rate schedule, gradient clipping and regularization."""

    lr: float
    final_lr: float = 0.0
    warmup_steps: int = 0
    decay: str = "cosine"  # cosine, linear or constant
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = True  # whether the token embeddings have weight decay, as other matrices have
    clip_grad: float = 1.0  # gradient clipping by global norm
    image_loss_weight: float = 1.0  # weight of image token losses in the gradient; text targets have 1
    dropout: float = 0.0  # dropout of the embeddings and of residual branches
    freeze: tuple[str, ...] = ()  # frozen weights: patterns of training names, as decoder.layers.*.text.*


@dataclass(frozen=True)
class ZeroSection:
    """DeepSpeed ZeRO: what is sharded over the data-parallel ranks, and offload; engine megatron ignores this
    section."""

    stage: int = 3  # ZeRO stage: 1 optimizer state, 2 gradients too, 3 weights too
    offload: bool = False  # CPU offload of the optimizer state and the update
    init: bool = True  # stage 3: shard weights at construction (zero.Init), so that no rank ever holds the whole model
    param_persistence_threshold: int = 100_000  # stage 3: smaller weights (elements) stay replicated on every rank
    hpz_partition_size: int = 0  # stage 3: ranks of a secondary partition, those of a node (ZeRO++ hpZ; 0: none)


@dataclass(frozen=True)
class CheckpointSection:
    """When to save checkpoints, and which to keep."""

    every: int  # steps between checkpoints
    keep: int = 2  # newest checkpoints to keep
    keep_every: int = 0  # steps; checkpoints at multiples are kept too (0: none)
    async_save: bool = False  # asynchronous saving: a thread writes a copy while training goes on


@dataclass(frozen=True)
class ResilienceSection:
    """Bad steps, rollback and the watchdog for hung processes."""

    spike: float = 0.0  # spike threshold: standard deviations above the mean of the window (0: any finite loss is good)
    window: int = 64  # good steps that a spike is measured against, and steps among which bad ones are counted
    bad_steps: int = 8  # bad ones among them that trigger a rollback; the rows since are left out (0: never)
    rollbacks: int = 2  # rollbacks before the run stops with a report
    hang_factor: float = 0.0  # watchdog: times the median step without progress before a process ends itself (0: never)
    hang_seconds: float = 600.0  # minimum of the watchdog in seconds: longer than any save, evaluation or sampling


@dataclass(frozen=True)
class LogSection:
    """Logging: intervals, metrics backends, sample images, profiling."""

    every: int = 10  # steps between two progress lines
    tensorboard: bool = True
    wandb: str = ""  # Weights & Biases project ("": none)
    heldout_every: int = 0  # steps between two evaluations on held-out rows (0: only at start and end)
    heldout_rows: int = 16
    conflict_every: int = 0  # steps between two measurements of gradient conflict on held-out rows (0: none)
    conflict_targets: int = 64  # target tokens of a gradient block, of which each modality has eight
    profile_steps: int = 0  # steps traced by torch's profiler on rank 0, after two warm-up steps (0: none)
    samples_every: int = 0  # steps between two sheets of sample pictures (0: none)
    sample_prompts: tuple[str, ...] = ()
    guidance: float = 3.0  # classifier-free guidance of the samples
    temperature: float = 1.0  # sampling temperature of the samples' codes


@dataclass(frozen=True)
class TrainConfig:
    """All sections of a run."""

    run: RunSection
    model: ModelSection
    data: DataSection
    optim: OptimSection
    checkpoint: CheckpointSection
    parallel: ParallelLayout = field(default_factory=ParallelLayout)
    zero: ZeroSection = field(default_factory=ZeroSection)
    resilience: ResilienceSection = field(default_factory=ResilienceSection)
    log: LogSection = field(default_factory=LogSection)


def load_config(path: str | Path, overrides: typing.Sequence[str] = (), notes: bool = True) -> TrainConfig:
    """Read a YAML file and apply `section.key=value` overrides. Raises UserError that names the file, key and value.

    notes: print a line on standard error for each former name of a key.
    """
    try:
        if (size := Path(path).stat().st_size) > MOST_BYTES:  # a list of shards, say: it would be read for minutes
            raise UserError(
                f"{path}: has {size / 1e6:.0f} MB, no configuration: give a YAML file as in pretrain/configs"
            )
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error.__class__.__name__}): give a YAML file with --config"
        ) from None
    try:
        values = read_yaml(text, str(path))
    except ValueError as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no sections: see pretrain/configs for complete files")
    values, renamed = with_current_names(values, str(path))
    overrides, more = overrides_with_current_names(overrides)
    changed = [key for override in overrides for key in _apply(values, override)]
    values, sections = with_current_names(values, "command line")  # of section={key: value}; the file's are replaced
    origin = Origin(str(path), tuple(changed))
    if notes and os.environ.get("RANK", "0") == "0":
        for line in renamed + more + sections:
            tell(f"note: {line}", sys.stderr)
    config = _build(TrainConfig, values, "", origin)
    check(config, origin)
    return config


@dataclass(frozen=True)
class Origin:
    """Origin of each value: the file, or a command-line override of its dotted key, for error messages."""

    file: str
    overrides: tuple[str, ...] = ()

    def of(self, key: str) -> str:
        """Where the value of this key came from, in words."""
        flat = key.replace("[", ".").replace("]", "")
        overridden = any(flat == own or flat.startswith(f"{own}.") for own in self.overrides)
        return "command line" if overridden else self.file


def dump_config(config: TrainConfig) -> str:
    """Resolved configuration as YAML, as saved in the run folder; `load_config` reads it back to an equal one."""
    import yaml

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def _apply(values: dict, override: str) -> list[str]:
    """Apply one `section.key=value`, the value parsed as YAML, to the raw values -> its key, and sections that are
    new."""
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise UserError(f"override {override!r}: write section.key=value, as in optim.lr=1e-4")
    place, keys = values, [key]
    for number, part in enumerate(parts[:-1]):
        if isinstance(place, dict) and part not in place:
            keys.append(".".join(parts[: number + 1]))
        place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if place is None or (isinstance(place, list) and number < len(parts) - 1):
            raise UserError(f"override {override!r}: {'.'.join(parts[: number + 1])} is no section")
    if not isinstance(place, dict):
        raise UserError(f"override {override!r}: {'.'.join(parts[:-1])} is no section")
    try:
        place[parts[-1]] = read_yaml(text, key) if text.strip() else ""
    except ValueError as error:
        raise UserError(f"override {shown(override)}: {shown(text)} is not a YAML value: {error}") from None
    return keys


def _build(cls, values, path: str, origin: Origin):
    """Build dataclass `cls` from a mapping: unknown and missing keys are refused, values are converted to their
    types."""
    if not isinstance(values, dict):
        raise UserError(f"{origin.of(path)}: {path or 'the file'} is {shown(values)}: expected a section with keys")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    types_of = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            full = f"{path}.{key}" if path else str(key)
            if key in ABSENT:
                raise UserError(f"{origin.of(full)}: {full}: {ABSENT[key]}")
            raise UserError(f"{origin.of(full)}: unknown key {full}: {_meant(str(key), path, list(fields))}")
    made = {}
    for name, spec in fields.items():
        full = f"{path}.{name}" if path else name
        if name in values:
            made[name] = _convert(types_of[name], values[name], full, origin)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise UserError(f"{origin.of(full)}: {full} is missing: it has no default")
    return cls(**made)


def _meant(key: str, section: str, fields: list[str]) -> str:
    """Suggestion for an unknown key, in words."""
    if key in OTHER_NAMES:
        return f"it is called {OTHER_NAMES[key]} here"
    former = {old.partition(".")[2]: new for old, new in FORMER_NAMES.items() if old.startswith(f"{section}.")}
    near = difflib.get_close_matches(key, [*fields, *former], n=1, cutoff=0.6)
    if near:
        return f"did you mean {f'{section}.' if section else ''}{former.get(near[0], near[0])}?"
    return f"{section or 'the file'} has {', '.join(fields)}"


def _convert(wanted, value, path: str, origin: Origin):
    if dataclasses.is_dataclass(wanted):
        return _build(wanted, value, path, origin)
    if typing.get_origin(wanted) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{origin.of(path)}: {path} is {shown(value)}: expected a list")
        inner = typing.get_args(wanted)[0]
        return tuple(_convert(inner, item, f"{path}[{i}]", origin) for i, item in enumerate(value))
    if wanted is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as a string
        except (ValueError, OverflowError):
            pass
    elif wanted is int and isinstance(value, (float, str)) and (whole := _whole(value)) is not None:
        return whole
    elif isinstance(wanted, type) and isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    name = wanted.__name__ if isinstance(wanted, (type, types.GenericAlias)) else str(wanted)
    raise UserError(f"{origin.of(path)}: {path} is {shown(value)}: expected {name}")


def _whole(value: float | str) -> int | None:
    """Integer of a number written with a point or an exponent, as 1e3; None for any other value."""
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if math.isfinite(number) and number.is_integer() else None
