"""Runs a script of the project, in which the gradient of one row is not a number: nan_gradient.py ROW SCRIPT ARGUMENTS."""

from __future__ import annotations

import itertools
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch


def poison(row_index: int) -> None:
    """From now on, wherever the engine meets this row."""
    from pretrain import runtime

    runtime.install()
    from pretrain.engines.megatron import MegatronEngine

    forward = MegatronEngine._forward_step

    def forward_step(self, rows, module):
        row = next(rows)
        output, loss_function = forward(self, itertools.chain([row], rows), module)
        losses = output[0] if isinstance(output, tuple) else output
        if row.index == row_index and losses.requires_grad:
            losses.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
        return output, loss_function

    MegatronEngine._forward_step = forward_step


if __name__ == "__main__":
    poison(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
