"""Training engines: an engine owns the model and the optimizer, and turns rows into an update.

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
    """Registry entry of an engine; functions are "module:function", imported when used."""

    module: str  # module with `make`
    check_layout: str = ""  # of (configuration, data-parallel ranks): raises UserError for unsupported layouts
    plan: str = ""  # of a planner job -> (layouts that fit, rejected ones); "": as for megatron-core
    memory: str = (
        ""  # of (configuration, model, row shape, data ranks) -> bytes of each pipeline rank; "": megatron-core's
    )
    whole_weights: bool = True  # a process holds its stage's full weights, as the gradient conflict watch needs them
    gradient_norm: str = "the engine's own"  # how the gradient norm is computed, for the first lines of a run
    zero_section: bool = False  # the `zero` section of the configuration is read
    other_kernels: bool = False  # run.kernels other than torch are supported
    adds_in_products: bool = False  # on GPUs matrix products add to float32 gradients of weights
    dry_run: bool = False  # tools/dry_run.py supports it
    close: str = ""  # of (): releases its engines of this process, before the process groups end


ENGINES = {
    "megatron": EngineKind(
        "pretrain.engines.megatron",
        gradient_norm="one call for all gradients",
        other_kernels=True,
        adds_in_products=True,
        dry_run=True,
    ),
    "zero3": EngineKind(
        "pretrain.engines.zero3",
        check_layout="pretrain.process_ranks:check_zero",
        plan="pretrain.planning.zero_layouts:plan_zero",
        memory="pretrain.planning.expected:zero_ranks",
        whole_weights=False,
        gradient_norm="DeepSpeed's",
        zero_section=True,
        close="pretrain.engines.zero3_setup:leave",
    ),
}
"""By the values of run.engine; the first is the default."""


def named(function: str) -> Callable[..., Any]:
    """Import the function of a "module:function" string."""
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def close_engines() -> None:
    """Release what the engines of this process hold; engines that were not imported are skipped."""
    for kind in ENGINES.values():
        if kind.close and kind.close.partition(":")[0] in sys.modules:
            named(kind.close)()


def that_have(what: str) -> str:
    """Names of the engines that support a feature, for error messages."""
    return " or ".join(name for name, kind in ENGINES.items() if getattr(kind, what))


@dataclass
class StepFigures:
    """Loss sums over the target tokens of one step, by modality of the target (text token or image token)."""

    loss_text: float
    loss_image: float
    tokens_text: int
    tokens_image: int
    grad_norm: float = 0.0
    updated: bool = True  # whether weights were updated
    alone: float = field(default=0.0, compare=False)  # seconds of this rank before gradient reduction; 0: not known

    def means(self) -> dict[str, float]:
        """Mean losses in nats per token: joint, text and image; a modality without targets is left out."""
        total = self.tokens_text + self.tokens_image
        named = {
            "loss": (self.loss_text + self.loss_image, total),
            "loss_text": (self.loss_text, self.tokens_text),
            "loss_image": (self.loss_image, self.tokens_image),
        }
        return {name: loss / count for name, (loss, count) in named.items() if count}


def figures_of(sums: Sequence[float]) -> StepFigures:
    """StepFigures from [text loss, image loss, text tokens, image tokens]."""
    loss_text, loss_image, tokens_text, tokens_image = sums
    return StepFigures(loss_text, loss_image, int(tokens_text), int(tokens_image))


Sound = Callable[[StepFigures], bool]  # called on all ranks, which see the same losses, before the update


def finite(figures: StepFigures) -> bool:
    """Whether the step's losses are finite: the default test of a step."""
    return math.isfinite(figures.loss_text) and math.isfinite(figures.loss_image)


class Engine(Protocol):
    """Protocol of an engine, as the loop and the checkpoints use it."""

    stages: Sequence[UniXTrainingModel]
    """The parts of the model on this rank, by pipeline stage; one where there is no pipeline."""

    @property
    def torch_optimizer(self) -> Optimizer | None:
        """torch's optimizer inside, if there is one."""

    def train_step(self, rows: Sequence[Row], lr: float, sound: Sound = finite) -> StepFigures:
        """One optimizer step on this rank's rows. It is skipped, with weights and state unchanged, if the gradient is
        not finite or `sound` returns False."""

    def evaluate(self, rows: Sequence[Row]) -> StepFigures:
        """Losses without an optimizer step."""

    def settle(self) -> None:
        """Wait until this rank's weights are complete: an engine may still gather them in the next forward pass."""

    def boxes(self) -> list[TensorBox]:
        """Weights and optimizer state that this rank writes."""

    def load(self, folder: Path, steps: int) -> None:
        """Load a whole checkpoint after so many updates. Raises UserError for one of another model or precision."""

    def load_weights(self, folder: Path) -> None:
        """Load the weights of a checkpoint only."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights under training names, on the CPU. A collective: all ranks call it."""


def make_engine(config: TrainConfig, model: ModelConfig) -> Engine:
    """Build the engine that run.engine names, with a new model."""
    return importlib.import_module(ENGINES[config.run.engine].module).make(config, model)
