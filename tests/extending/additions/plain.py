"""An engine of torch alone: AdamW on whole weights, gradients summed over the data-parallel ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from megatron.core import parallel_state
from torch import Tensor

from model.config import ModelConfig
from model.initialise import initialise
from model.layer_specs import transformer_config
from pretrain.config import TrainConfig
from pretrain.engines import Sound, StepFigures, figures_of, finite
from pretrain.engines.common import check_stored, decays, loss_sums, routing_of, set_hyperparameters
from pretrain.engines.stages import build_stages, held_weights, whole_weights
from pretrain.parallel import megatron_settings
from pretrain.row_tensors import Row
from pretrain.sharded_files import read_boxes
from pretrain.system.errors import UserError
from pretrain.tensor_boxes import TensorBox, boxes_of, owned

MOMENTS = ("exp_avg", "exp_avg_sq")


def check_layout(config: TrainConfig, ranks: int) -> None:
    """Raises UserError for what this engine does not do."""
    parallel = config.parallel
    if (parallel.tensor, parallel.pipeline) != (1, 1) or config.run.precision != "fp32" or config.optim.freeze:
        raise UserError(
            "run.engine plain trains whole models in float32: set parallel.tensor=1, parallel.pipeline=1, run.precision=fp32 "
            "and no optim.freeze, or run.engine=megatron"
        )


def make(config: TrainConfig, model: ModelConfig) -> PlainEngine:
    """The engine of a run's configuration."""
    return PlainEngine(config, model)


class PlainEngine:
    """The model and its optimizer on this rank."""

    def __init__(self, config: TrainConfig, model: ModelConfig) -> None:
        self.model_config, self.optim, self.seed = model, config.optim, config.run.seed
        settings = megatron_settings(config.parallel, model.num_hidden_layers)
        self.device = torch.cuda.current_device()
        with torch.device(self.device):
            self.stages = build_stages(
                model, transformer_config(model, hidden_dropout=config.optim.dropout, **settings)
            )
        (self.model,) = self.stages
        self.names = dict(held_weights(self.stages))
        initialise(model, self.names.items(), self.seed)
        groups = [
            {
                "params": [w for name, w in self.names.items() if decays(name, w.ndim, self.optim) == kept],
                "wd_mult": kept,
            }
            for kept in (True, False)
        ]
        self.torch_optimizer = torch.optim.AdamW([{**group, "lr_mult": 1.0} for group in groups], lr=config.optim.lr)
        for weight in self.names.values():
            state = {"step": torch.tensor(0.0)} | {name: torch.zeros_like(weight) for name in MOMENTS}
            self.torch_optimizer.state[weight] = state

    def train_step(self, rows: Sequence[Row], lr: float, sound: Sound = finite) -> StepFigures:
        """One update from this rank's rows; the gradient is that of the mean over target tokens."""
        set_hyperparameters(self.torch_optimizer.param_groups, self.optim, lr)
        self.model.train()
        self.torch_optimizer.zero_grad(set_to_none=False)
        figures = figures_of(self._sums(rows, training=True).tolist())
        gradients = [weight.grad for weight in self.names.values() if weight.grad is not None]
        for gradient in gradients:
            torch.distributed.all_reduce(gradient, group=parallel_state.get_data_parallel_group())
            gradient /= max(1, figures.tokens_text + figures.tokens_image)
        figures.grad_norm = float(torch.nn.utils.get_total_norm(gradients))
        figures.updated = math.isfinite(figures.grad_norm) and sound(figures)
        if figures.updated:
            if self.optim.clip_grad and figures.grad_norm > self.optim.clip_grad:
                for gradient in gradients:
                    gradient *= self.optim.clip_grad / figures.grad_norm
            self.torch_optimizer.step()
        return figures

    def evaluate(self, rows: Sequence[Row]) -> StepFigures:
        """Losses without an update."""
        self.model.eval()
        with torch.no_grad():
            return figures_of(self._sums(rows, training=False).tolist())

    def _sums(self, rows: Sequence[Row], training: bool) -> Tensor:
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for row in rows:
            row = row.to(self.device)
            dropping = bool(training and self.optim.dropout)
            routing = routing_of(row, self.model_config, torch.float32, self.seed, dropping, sequence_parallel=False)
            losses, labels, total = self.model(row.ids, row.labels, row.targets, routing, self.optim.image_loss_weight)
            if training:
                total.backward()
            sums += loss_sums(losses, labels, self.model_config.vocabulary)
        torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        return sums

    def settle(self) -> None:
        """Weights are whole always."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """(training name, tensor on the CPU) of every weight."""
        return whole_weights(self.stages)

    def _weights(self) -> list[TensorBox]:
        return [
            box for name, weight in self.names.items() for box in boxes_of(name, name, weight.shape, weight.data, 0, 1)
        ]

    def _moments(self) -> list[TensorBox]:
        return [
            box
            for name, weight in self.names.items()
            for kind in MOMENTS
            for box in boxes_of(
                f"optimizer.{kind}.{name}", name, weight.shape, self.torch_optimizer.state[weight][kind], 0, 1
            )
        ]

    def boxes(self) -> list[TensorBox]:
        """What this rank writes of weights and optimizer state."""
        group = parallel_state.get_data_parallel_group()
        return owned([*self._weights(), *self._moments()], group.rank(), group.size())

    def load(self, folder: Path, steps: int) -> None:
        """All of a checkpoint, after so many updates. Raises UserError where it is of another model."""
        boxes = [*self._weights(), *self._moments()]
        check_stored(folder, boxes)
        read_boxes(folder, boxes)
        for state in self.torch_optimizer.state.values():
            state["step"] = torch.tensor(float(steps))

    def load_weights(self, folder: Path) -> None:
        """A checkpoint's weights alone."""
        read_boxes(folder, self._weights())
