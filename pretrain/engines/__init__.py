"""What a training engine is: it owns the model and the optimizer, and turns rows into an update.

An engine is a module with `make(config, model) -> Engine`, and an entry of `ENGINES`. `figures` are sums over all ranks, so
that a mean never depends on how rows were dealt out.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from model.config import ModelConfig
    from model.uni_x import UniXTrainingModel
    from pretrain.config import TrainConfig
    from pretrain.row_tensors import Row
    from pretrain.tensor_boxes import TensorBox


@dataclass(frozen=True)
class EngineKind:
    """What is known of an engine before it is imported; functions are "module:function", imported when used."""

    module: str  # that has `make`
    check_layout: str = (
        ""  # of (configuration, data-parallel ranks): raises UserError for layouts that it does not combine with
    )
    plan: str = ""  # of a planning job -> (layouts that fit, those that do not); "": as megatron-core lays models out
    memory: str = (
        ""  # of (configuration, model, row shape, data ranks) -> expected bytes of each pipeline rank; "": likewise
    )
    whole_weights: bool = (
        True  # a process has its stage's weights whole, as measuring conflict while training needs them
    )
    other_kernels: bool = False  # run.kernels may be other than torch's
    dry_run: bool = False  # tools/dry_run.py imitates its step
    close: str = ""  # of (): lets go of all that its engines of this process hold, before the process groups end


ENGINES = {
    "megatron": EngineKind("pretrain.engines.megatron", other_kernels=True, dry_run=True),
    "zero3": EngineKind(
        "pretrain.engines.zero3",
        check_layout="pretrain.process_ranks:check_zero",
        plan="pretrain.planning.zero_layouts:plan_zero",
        memory="pretrain.planning.expected:zero_ranks",
        whole_weights=False,
        close="pretrain.engines.zero3_setup:leave",
    ),
}
"""By the values of run.engine; the first is the default."""


def named(function: str) -> Callable[..., Any]:
    """The function of a "module:function"."""
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def close_engines() -> None:
    """Let go of what the engines of this process hold; kinds that nothing of was imported have nothing."""
    for kind in ENGINES.values():
        if kind.close and kind.close.partition(":")[0] in sys.modules:
            named(kind.close)()


def that_have(what: str) -> str:
    """The engines of which a switch is on, as a remedy names them."""
    return " or ".join(name for name, kind in ENGINES.items() if getattr(kind, what))


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


class Engine(Protocol):
    """What the loop and the checkpoints ask of an engine."""

    stages: Sequence[UniXTrainingModel]
    """The parts of the model on this rank, by pipeline stage; one where there is no pipeline."""

    @property
    def torch_optimizer(self) -> Optimizer | None:
        """torch's optimizer inside, where there is one."""

    def train_step(self, rows: Sequence[Row], lr: float, sound: Sound = finite) -> StepFigures:
        """Rows of this rank for one step. The update is made, unless the gradient is not finite or `sound` says no, and then
        weights and state are as before."""

    def evaluate(self, rows: Sequence[Row]) -> StepFigures:
        """Losses without an update."""

    def settle(self) -> None:
        """Wait until the weights are whole on this rank: an engine may gather them during the next forward pass."""

    def boxes(self) -> list[TensorBox]:
        """What this rank writes of weights and optimizer state."""

    def load(self, folder: Path, steps: int) -> None:
        """All of a checkpoint, after so many updates. Raises UserError where it is of another model or precision."""

    def load_weights(self, folder: Path) -> None:
        """A checkpoint's weights alone."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole weights under training names, on the CPU. A collective: all ranks go through it."""


def make_engine(config: TrainConfig, model: ModelConfig) -> Engine:
    """The engine that run.engine names, around a new model."""
    return importlib.import_module(ENGINES[config.run.engine].module).make(config, model)
