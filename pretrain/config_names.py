"""Former names of configuration keys, which are still accepted, and other programs' names for the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pretrain.system.errors import UserError

FORMER_NAMES = {  # section.key of former releases -> the key of that section today
    "data.row_length": "sequence_length",
    "data.rows_per_step": "global_batch_size",
    "data.wordings": "prompt_templates",
    "resilience.go_backs": "rollbacks",
    "zero.keep_whole": "param_persistence_threshold",
    "zero.hierarchical": "hpz_partition_size",
}
OTHER_NAMES = {  # names of these keys elsewhere: megatron-core, DeepSpeed, transformers and others
    **dict.fromkeys(("learning_rate", "max_lr", "peak_lr"), "optim.lr"),
    **dict.fromkeys(("min_lr", "lr_min"), "optim.final_lr"),
    **dict.fromkeys(("lr_warmup_iters", "lr_warmup_steps", "num_warmup_steps"), "optim.warmup_steps"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "lr_decay_style", "scheduler"), "optim.decay"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "gradient_clipping", "max_norm"), "optim.clip_grad"),
    **dict.fromkeys(("batch_size", "train_batch_size", "per_device_train_batch_size"), "data.global_batch_size"),
    **dict.fromkeys(
        ("seq_length", "seq_len", "max_seq_length", "max_length", "context_length", "block_size"),
        "data.sequence_length",
    ),
    **dict.fromkeys(
        ("max_steps", "train_iters", "iterations", "total_steps", "epochs", "num_train_epochs"), "run.steps"
    ),
    **dict.fromkeys(("output_dir", "save_dir", "out_dir"), "run.folder"),
    **dict.fromkeys(("save_steps", "save_interval"), "checkpoint.every"),
    "save_total_limit": "checkpoint.keep",
    **dict.fromkeys(("log_interval", "logging_steps"), "log.every"),
    **dict.fromkeys(("eval_steps", "eval_interval"), "log.heldout_every"),
    "num_workers": "data.workers",
    "num_layers": "model.num_hidden_layers",
    "n_layers": "model.num_hidden_layers",
    "ffn_hidden_size": "model.intermediate_size",
}


def with_current_names(values: Any, owner: str = "config.yaml") -> tuple[Any, list[str]]:
    """Replace former names in the raw values of a configuration -> (values, a line for each name that was replaced).

    `owner` is the file. The order of keys stays. Raises UserError where a key stands under both names.
    """
    if not isinstance(values, dict):
        return values, []
    lines = []
    for former, name in FORMER_NAMES.items():
        section, _, key = former.partition(".")
        part = values.get(section)
        if not isinstance(part, dict) or key not in part:
            continue
        if name in part:
            raise UserError(_twice(owner, former))
        values = {**values, section: {(name if own == key else own): value for own, value in part.items()}}
        lines.append(_renamed(owner, former))
    return values, lines


def overrides_with_current_names(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace former names in command-line `section.key=value` overrides -> (overrides, a line for each that was
    replaced).

    Raises UserError where a key is given under both names.
    """
    made, lines, given = [], [], {override.partition("=")[0] for override in overrides}
    for override in overrides:
        key, equals, value = override.partition("=")
        if key in FORMER_NAMES:
            if current(key) in given:
                raise UserError(_twice("command line", key))
            lines.append(_renamed("command line", key))
            key = current(key)
        made.append(f"{key}{equals}{value}")
    return made, lines


def current(former: str) -> str:
    """Current dotted key for a former one."""
    return f"{former.partition('.')[0]}.{FORMER_NAMES[former]}"


def _twice(owner: str, former: str) -> str:
    return f"{owner}: {former} is the former name of {current(former)}, and both are given: leave {former} out"


def _renamed(owner: str, former: str) -> str:
    return f"{owner}: {former} is called {current(former)} now (the former name is still taken)"
