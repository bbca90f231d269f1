"""Runs a script of the project, in which the gradient of one row is not a number: nan_gradient.py ROW SCRIPT ARGUMENTS."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch


def poison(row_index: int) -> None:
    """From now on, wherever an engine meets this row: the loss is a number, its gradient is none."""
    from pretrain import runtime

    runtime.install()
    from model import loss
    from pretrain.engines import common, megatron, zero3

    met, original = [], loss.weighted_loss

    def routing_of(row, *arguments):
        met.append(row.index)
        return common.routing_of(row, *arguments)

    def weighted_loss(*arguments):
        total, losses = original(*arguments)
        if met[-1] == row_index and total.requires_grad:
            total.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
        return total, losses

    for engine in (megatron, zero3):
        engine.routing_of = routing_of
    loss.weighted_loss = weighted_loss


if __name__ == "__main__":
    poison(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
