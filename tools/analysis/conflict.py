"""Gram matrices of a checkpoint's gradients, for the matrices of this process."""

from __future__ import annotations

import argparse
from typing import Any


def measure(opened, arguments: argparse.Namespace, together) -> dict[str, object]:
    """Hugging Face name of a matrix -> its Gram matrix, for this process's share of the matrices.

    Of `arguments` it reads what `parse_arguments` says about blocks, rows, data and memory.
    """
    from pretrain.conflict.blocks import BlockSizes, share_out
    from pretrain.conflict.gradients import gram_matrices, groups_that_fit, matrices
    from tools.runs.checkpoint_model import planned_rows

    sizes = BlockSizes(arguments.blocks, arguments.targets, arguments.text)
    sizes.check()
    rows = planned_rows(opened, arguments.data, arguments.sequence_length, arguments.text_to_image, arguments.seed)
    shares = share_out(rows, opened.config.vocabulary, sizes)
    chosen = matrices(opened.model)
    mine = dict(list(chosen.items())[together.rank :: together.size])
    found: dict[str, Any] = {}  # tensors
    for group in groups_that_fit(mine, sizes, arguments.memory * 2**30):
        found |= dict(gram_matrices(opened.model, opened.config, shares, sizes, group))
    return {name: gram.numpy() for name, gram in found.items()}
