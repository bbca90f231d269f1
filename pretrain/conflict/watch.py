"""Gradient conflict during training, measured on held-out rows: two matrices a layer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from model.config import ModelConfig
from model.layer_kinds import KINDS
from pretrain.conflict.blocks import BlockSizes, share_out
from pretrain.conflict.estimates import estimate
from pretrain.conflict.gradients import gram_matrices, matrices
from pretrain.row_tensors import Row
from pretrain.system.errors import UserError

BLOCKS = 8
REPLICATES = 100
# Matrices that the paper shows, in layers with shared weights; separate branches have other prefixes.
WATCHED = re.compile(r"decoder\.layers\.(\d+)\.(self_attention\.linear_proj|mlp\.linear_fc2)\.weight")


class ConflictWatch:
    """Measures conflict on the same targets each time, so that only the model changes."""

    def __init__(self, config: ModelConfig, rows: Sequence[Row], targets: int):
        """targets: target tokens of a block. Raises UserError when the rows have too few."""
        self.config, self.sizes = config, BlockSizes(BLOCKS, targets)
        try:
            self.shares = share_out(rows, config.vocabulary, self.sizes)
        except UserError as error:
            raise UserError(
                f"log.conflict_targets {targets}: of the held-out rows {error}; or raise log.heldout_rows"
            ) from None

    def measure(self, model) -> dict[str, float]:
        """Metrics by name: conflict of each watched matrix and their mean.

        Changes nothing of `model`, a whole UniXModel.
        """
        model.eval()
        found: dict[str, float] = {}
        watched = list(matrices(model, self._is_watched))
        if not watched:  # all of them are frozen
            return found
        grams = gram_matrices(model, self.config, self.shares, self.sizes, watched)
        for name, gram in grams:
            _, _, layer, _, matrix, _ = name.split(".")
            found[f"conflict/{matrix}_{int(layer):02d}"] = estimate(gram.numpy(), replicates=REPLICATES).conflict
        return {**found, "conflict/mean": sum(found.values()) / len(found)}

    def _is_watched(self, name: str) -> bool:
        found = WATCHED.fullmatch(name)
        return found is not None and KINDS[self.config.layer_kinds[int(found[1])]].met_by_both(found[2])
