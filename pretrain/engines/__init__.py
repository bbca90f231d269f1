"""What a training engine is: it owns the model and the optimizer, and turns rows into an update.

`pretrain/train.py` uses an engine through these methods only:

    train_step(rows, lr, sound) -> StepFigures   rows of this rank for one step; the update is made, unless the gradient is
                                             not finite or `sound` says no, and then weights and state are as before
    evaluate(rows) -> StepFigures            losses without an update
    pieces() -> list of Piece                what this rank writes of weights and optimizer state
    load(folder, steps), load_weights(folder)   all of a checkpoint after so many updates, or its weights alone
    weights() -> iterator of (name, tensor)  whole weights under training names, on the CPU

`figures` are sums over all ranks, so that a mean never depends on how rows were dealt out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class StepFigures:
    """Sums over the target tokens of one step, by what was predicted (text id or picture code)."""

    loss_text: float
    loss_image: float
    tokens_text: int
    tokens_image: int
    grad_norm: float = 0.0
    updated: bool = True  # whether the weights moved
    alone: float = field(default=0.0, compare=False)  # seconds that this rank took to its gradients' sum; 0: not known

    def means(self) -> dict[str, float]:
        """Mean losses in nats a token: joint, text and image; a modality without targets is left out."""
        total = self.tokens_text + self.tokens_image
        named = {
            "loss": (self.loss_text + self.loss_image, total),
            "loss_text": (self.loss_text, self.tokens_text),
            "loss_image": (self.loss_image, self.tokens_image),
        }
        return {name: loss / count for name, (loss, count) in named.items() if count}


def figures_of(sums: Sequence[float]) -> StepFigures:
    """[text loss, image loss, text tokens, image tokens] -> the figures."""
    loss_text, loss_image, tokens_text, tokens_image = sums
    return StepFigures(loss_text, loss_image, int(tokens_text), int(tokens_image))


Sound = Callable[[StepFigures], bool]  # asked on all ranks, which see the same losses, before the weights move


def finite(figures: StepFigures) -> bool:
    """Whether the step's losses are numbers: the least that is asked of a step."""
    return math.isfinite(figures.loss_text) and math.isfinite(figures.loss_image)
