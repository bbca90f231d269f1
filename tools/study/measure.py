"""Measures of a checkpoint in the study: losses, retrieval, parameters, conflict."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def heldout_losses(opened, arguments: argparse.Namespace, languages: list[Path]) -> dict[str, dict]:
    """Kind of target -> mean loss in nats per token, and its number of tokens."""
    from pretrain.conflict.blocks import split_targets
    from tools.runs.checkpoint_model import planned_rows
    from tools.study.scores import target_losses

    losses_of = target_losses(opened)
    asked = [(f"text_{folder.name}", folder / "heldout", 0.0, False) for folder in languages]
    asked += [
        ("names", arguments.pictures / "heldout", 0.0, False),
        ("pictures", arguments.pictures / "heldout", 1.0, True),
    ]
    found = {}
    for name, folder, text_to_image, of_codes in asked:
        total, tokens = 0.0, 0
        for number, row in enumerate(planned_rows(opened, [folder], arguments.sequence_length, text_to_image)):
            if number == arguments.rows:
                break
            row.targets = split_targets(row, opened.config.vocabulary)[1 if of_codes else 0]
            if len(row.targets):
                total += float(losses_of(row).sum())
                tokens += len(row.targets)
        found[name] = {"loss": total / max(1, tokens), "tokens": tokens}
    return found


def sizes_of(opened) -> dict[str, int]:
    """Total parameters, and activated ones: all but the other modality's."""
    total = sum(parameter.numel() for parameter in opened.model.parameters())
    vision = sum(parameter.numel() for name, parameter in opened.model.named_parameters() if ".vision." in name)
    return {"total": total, "activated": total - vision}


def conflict_of(opened, arguments: argparse.Namespace, languages: list[Path]) -> float:
    """Write conflict/ -> mean conflict of the layers with shared weights; nan without any."""
    from pretrain.coordination import Coordinator
    from tools.analysis.conflict import measure
    from tools.analysis.conflict_profile import estimates, shared_lines, write

    data = [folder / "train" for folder in languages] + [arguments.pictures / "train"]
    settings = {
        "checkpoint": str(opened.folder),
        "data": [str(path) for path in data],
        "text": "plain",
        "seed": 0,
        "blocks": arguments.blocks,
        "targets": arguments.targets,
        "sequence_length": arguments.sequence_length,
        "text_to_image": 0.8,
        "memory": 2.0,
    }
    grams = measure(opened, argparse.Namespace(**{**settings, "data": data}), Coordinator())
    lines = estimates(opened.config, grams)
    write(arguments.output / "conflict", lines, opened.config, settings)
    shared = [line.conflict for line in shared_lines(lines, "layer")]
    return sum(shared) / len(shared) if shared else math.nan
