"""The DeepSpeed engine: ZeRO over the same megatron-core modules, optionally with tensor parallelism."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from model.config import ModelConfig
from model.initialise import first_weight
from model.layer_specs import transformer_config
from model.tensor_shards import join
from model.uni_x import UniXTrainingModel
from pretrain.config import OptimSection, TrainConfig, ZeroSection
from pretrain.engines import Sound, StepFigures, figures_of, finite, zero3_setup, zero3_state
from pretrain.engines.common import check_stored, decays, loss_sums, routing_of, set_hyperparameters
from pretrain.engines.freezing import freeze, let_gradients_through
from pretrain.engines.stages import held_weights, save_memory, this_device
from pretrain.parallel import ParallelLayout, check_layout, megatron_settings
from pretrain.row_tensors import Row
from pretrain.sharded_files import read_boxes
from pretrain.tensor_boxes import TensorBox, boxes_of


def check_dtype(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Check that weights, or this rank's partitions, have the training dtype. Raises RuntimeError with the name of one
    that does not."""
    for name, parameter in module.named_parameters():
        found = getattr(parameter, "ds_tensor", parameter).dtype
        if found != dtype:
            raise RuntimeError(f"DeepSpeed made {name} in {found}, where {dtype} was asked for: set zero.init=false")


def make(config: TrainConfig, model: ModelConfig) -> Zero3Engine:
    """Build the engine from a run's configuration."""
    run = config.run
    return Zero3Engine(
        model, config.optim, run.precision, config.data.sequence_length, run.seed, config.parallel, config.zero
    )


class Zero3Engine:
    """Model and optimizer of this rank. `runtime.start_distributed` must have made the process groups of `parallel`."""

    def __init__(
        self,
        model: ModelConfig,
        optim: OptimSection,
        precision: str,
        sequence_length: int,
        seed: int,
        parallel: ParallelLayout = ParallelLayout(),
        zero: ZeroSection = ZeroSection(),
    ):
        check_layout(parallel, model)
        zero3_setup.start()
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model_config, self.optim, self.sequence_length, self.seed = model, optim, sequence_length, seed
        self.sequence_parallel, self.stage = parallel.sequence, zero.stage
        self.group = parallel_state.get_data_parallel_group()
        self.device = this_device()
        config = transformer_config(
            model,
            hidden_dropout=optim.dropout,
            bf16=self.dtype == torch.bfloat16,
            params_dtype=self.dtype,
            calculate_per_token_loss=True,
            **megatron_settings(parallel, model.num_hidden_layers),
        )
        cut = zero.stage == 3 and zero.init
        with self._cut_as_made(zero, parallel) if cut else torch.device(self.device):
            module = UniXTrainingModel(model, config)
        save_memory([module], parallel)
        check_dtype(module, self.dtype)
        # Any: parameters, to which DeepSpeed gives attributes of its own
        self.names: dict[Any, str] = {parameter: name for name, parameter in held_weights([module])}
        self._initialise()
        freeze(optim.freeze, model, ((name, parameter) for parameter, name in self.names.items()))
        let_gradients_through([module])
        self._sum_over_tensor_ranks()
        elements = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in self.names)
        if zero.stage == 3:
            import deepspeed

            # The head reads this weight outside of the module that holds it.
            deepspeed.zero.register_external_parameter(module, module.output_weight())
        values = zero3_setup.settings(
            zero, optim, self.dtype == torch.bfloat16, elements, parallel, self._largest_layer(module)
        )
        self.adam = torch.optim.AdamW(self._groups(), lr=optim.lr, fused=True)
        self.engine = zero3_setup.wrap(module, self.adam, values)
        self.held = list(zero3_state.stretches(self.engine, self.names))
        self.stages = [module]

    @staticmethod
    def _largest_layer(module: UniXTrainingModel) -> int:
        """Elements of the largest layer's weights, and at least as many as DeepSpeed prefetches by itself."""
        sizes = [
            sum(getattr(each, "ds_numel", each.numel()) for each in layer.parameters())
            for layer in module.decoder.layers
        ]
        return max([zero3_setup.PREFETCHED, *sizes])

    def _cut_as_made(self, zero: ZeroSection, parallel: ParallelLayout):
        import deepspeed

        values = zero3_setup.settings(zero, self.optim, self.dtype == torch.bfloat16, 1, parallel)
        # No `dtype` here: DeepSpeed 0.19.8 makes float32 bfloat16 where the processor or GPU reports no fp16. Without
        # it, the configuration decides.
        return deepspeed.zero.Init(data_parallel_group=self.group, config_dict_or_path=values, mpu=zero3_setup.Ranks)

    def _initialise(self) -> None:
        """Initialize weights by name as `model.initialise` does, one in memory at a time; each rank keeps its
        partition."""
        rank, ranks = zero3_state.tensor_ranks()
        with torch.no_grad():
            for parameter, name in self.names.items():
                cut = getattr(parameter, "ds_tensor", None)
                shape = parameter.shape if cut is None else parameter.ds_shape
                share = first_weight(self.model_config, name, shape, self.seed, rank, ranks)
                if cut is None:
                    parameter.copy_(share)
                    continue
                part = share.reshape(-1)[self.group.rank() * cut.numel() :][: cut.numel()]
                cut.data[: len(part)].copy_(part)
        self._forget_second_cuts()

    def _forget_second_cuts(self) -> None:
        """Drop the secondary partitions of `zero.hpz_partition_size` (ZeRO++ hpZ): DeepSpeed gathers from them, and
        they lack what was written here. It makes them again in the next forward pass."""
        for parameter in self.names:
            if getattr(parameter, "ds_secondary_tensor", None) is not None:
                parameter.ds_secondary_tensor = None

    def _sum_over_tensor_ranks(self) -> None:
        """All-reduce the gradients of norms over tensor-parallel ranks: each rank has them for its own tokens or
        heads."""
        group = parallel_state.get_tensor_model_parallel_group()
        if group.size() == 1:
            return

        def summed(gradient: Tensor) -> Tensor:
            gradient = gradient.contiguous()
            torch.distributed.all_reduce(gradient, group=group)
            return gradient

        for parameter, name in self.names.items():
            of_heads = name.endswith(("q_layernorm.weight", "k_layernorm.weight"))
            if parameter.requires_grad and (of_heads or getattr(parameter, "sequence_parallel", False)):
                parameter.register_hook(summed)

    def _groups(self) -> list[dict]:
        """Parameter groups as megatron-core's: with weight decay and without, no frozen weights."""
        groups: dict[float, list] = {1.0: [], 0.0: []}
        for parameter, name in self.names.items():
            if not parameter.requires_grad:
                continue
            dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
            groups[float(decays(name, dimensions, self.optim))].append(parameter)
        return [{"params": members, "wd_mult": factor, "lr_mult": 1.0} for factor, members in groups.items() if members]

    def train_step(self, rows: Sequence[Row], lr: float, sound: Sound = finite) -> StepFigures:
        """One optimizer step on this rank's rows, each a microbatch; the loss is the mean over target tokens."""
        set_hyperparameters(self.adam.param_groups, self.optim, lr)
        self.engine.train()
        tokens = torch.tensor(sum(len(row.targets) for row in rows), device=self.device)
        torch.distributed.all_reduce(tokens, group=self.group)
        # DeepSpeed takes the mean over ranks, of which a mean over all target tokens is made in float32, after the backward
        # pass: activations of bf16 are then rounded as in the other engine.
        scale = max(1, int(tokens)) / self.group.size()
        self.engine.optimizer.override_loss_scale(scale)
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for number, row in enumerate(rows):
            last = number == len(rows) - 1
            self.engine.set_gradient_accumulation_boundary(last)
            total, of_row = self._losses(row)
            sums += of_row.double()
            if last:
                figures = self._figures(sums)
                if not sound(figures):
                    total = total * math.nan  # DeepSpeed skips the step when it finds the gradient
            self.engine.backward(total / scale)  # DeepSpeed multiplies by it
        self.engine.step()
        figures.updated = self.engine.was_step_applied()
        figures.grad_norm = float(self.engine.get_global_grad_norm())
        return figures

    def evaluate(self, rows: Sequence[Row]) -> StepFigures:
        """Losses of rows, without gradients."""
        self.engine.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for row in rows:
                sums += self._losses(row)[1].double()
        return self._figures(sums)

    def _losses(self, row: Row) -> tuple[Tensor, Tensor]:
        row = row.to(self.device)
        dropping = bool(self.optim.dropout) and self.engine.module.training
        routing = routing_of(row, self.model_config, self.dtype, self.seed, dropping, self.sequence_parallel)
        losses, labels, total = self.engine(row.ids, row.labels, row.targets, routing, self.optim.image_loss_weight)
        return total, loss_sums(losses, labels, self.model_config.vocabulary)

    def _figures(self, sums: Tensor) -> StepFigures:
        torch.distributed.all_reduce(sums, group=self.group)
        return figures_of(sums.tolist())

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer."""
        return self.adam

    def settle(self) -> None:
        """No-op: nothing is pending between two steps."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (training name, tensor on the CPU) of every weight, in the training dtype. A collective: all ranks call
        it."""
        group = parallel_state.get_tensor_model_parallel_group()
        for parameter, name in self.names.items():
            with self._whole(parameter):
                part = parameter.detach().clone().contiguous()
            parts = [part]
            if group.size() > 1:
                parts = [torch.empty_like(part) for _ in range(group.size())]
                torch.distributed.all_gather(parts, part, group=group)
            yield name, join(name, parts).to("cpu")

    def _whole(self, parameter: torch.nn.Parameter):
        if self.stage != 3:
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter])

    def boxes(self) -> list[TensorBox]:
        """Weights and optimizer state that this rank writes, as views that the next update changes."""
        return zero3_state.ours([*self._weight_boxes(), *zero3_state.optimizer_boxes(self.held, self.adam)])

    def _weight_boxes(self) -> list[TensorBox]:
        frozen = zero3_state.frozen_boxes(self.names, cut=self.stage == 3)
        return [*zero3_state.weight_boxes(self.held), *frozen]

    def load(self, folder: Path, steps: int) -> None:
        """Load weights and optimizer state after `steps` updates, written by any parallel layout or engine.

        Raises UserError when the checkpoint is of another model or precision.
        """
        states = zero3_state.optimizer_boxes(self.held, self.adam)
        check_stored(folder, [*self._weight_boxes(), *states])
        self._read(folder, states)
        for stretch in self.held:
            zero3_state.state_of(stretch, self.adam)["step"].fill_(steps)

    def load_weights(self, folder: Path) -> None:
        """Load weights only, of any stored precision, at the start of a new run. Raises UserError."""
        self._read(folder, [])
        for stretch in self.held:
            stretch.main.copy_(stretch.weight)

    def _read(self, folder: Path, states: list[TensorBox]) -> None:
        if self.stage == 3:
            self.engine.optimizer._partition_all_parameters()  # replicated weights are copies of what is read here
            read_boxes(folder, [*self._weight_boxes(), *states])
            kept = self.engine.optimizer.persistent_parameters
            if kept:
                kept[0].all_gather(kept)
            self._forget_second_cuts()
        else:  # every rank holds every weight
            rank, ranks = zero3_state.tensor_ranks()
            whole = [
                box
                for parameter, name in self.names.items()
                for box in boxes_of(name, name, parameter.shape, parameter.data, rank, ranks)
            ]
            read_boxes(folder, [*whole, *states])
        if self.dtype == torch.float32:
            for stretch in self.held:
                stretch.main.copy_(stretch.weight)
