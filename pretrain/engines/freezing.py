"""Frozen weights: chosen by patterns over training names, without gradients and optimizer state."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch

from model.config import ModelConfig
from model.uni_x import UniXTrainingModel
from model.weight_names import training_names
from pretrain.system.errors import UserError


def frozen_names(patterns: Sequence[str], model: ModelConfig) -> set[str]:
    """Training names that match any pattern, as `decoder.layers.*.text.*`; `*` matches dots too.

    Raises UserError for a pattern that matches no weight, and when all weights match.
    """
    names, found = list(training_names(model)), set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            near = ", ".join(sorted(names, key=lambda name: -_in_common(pattern, name))[:3])
            raise UserError(f"optim.freeze: {pattern!r} is the name of no weight: there are {near} and others")
        found |= matched
    if len(found) == len(names):
        raise UserError(f"optim.freeze: {list(patterns)} leaves nothing to learn: take a pattern out")
    return found


def _in_common(pattern: str, name: str) -> int:
    """Characters that a pattern and a name have in common, in the same order."""
    return sum(
        block.size for block in difflib.SequenceMatcher(None, pattern, name, autojunk=False).get_matching_blocks()
    )


def freeze(patterns: Sequence[str], model: ModelConfig, weights: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
    """Set requires_grad to False for those of a rank's weights, (training name, parameter), that match the patterns."""
    if not patterns:
        return
    frozen = frozen_names(patterns, model)
    for name, parameter in weights:
        parameter.requires_grad_(name not in frozen)


def let_gradients_through(stages: Sequence[UniXTrainingModel]) -> None:
    """Make the output of a frozen embedding require a gradient (for activation recomputation and pipelines).

    A layer that is computed again in the backward pass gives its weights a gradient only if its input wants one.
    """
    for stage in stages:
        if stage.pre_process and stage.config.recompute_granularity and not _learns(stage.embedding):
            stage.embedding.register_forward_hook(_ask_for_gradient)


def _learns(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _ask_for_gradient(_module, _inputs, output: torch.Tensor) -> None:
    if torch.is_grad_enabled():
        output.requires_grad_()
