"""The megatron-core engine: its schedules, gradient buffers and optimizer with our model."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, ParamKey, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from model import gpu_kernels
from model.config import ModelConfig
from model.initialise import initialise
from model.kernels import TORCH
from model.layer_specs import transformer_config
from model.uni_x import UniXTrainingModel
from pretrain.config import OptimSection, TrainConfig
from pretrain.engines import Sound, StepFigures, figures_of, finite, overlapping, update
from pretrain.engines.clock import moment, seconds_between
from pretrain.engines.common import check_stored, decays, loss_sums, routing_of, set_hyperparameters
from pretrain.engines.freezing import freeze, let_gradients_through
from pretrain.engines.gradient_sums import begin_with_products, check_written
from pretrain.engines.rank_state import boxes_to_write, optimizer_boxes, set_adam_steps, weight_boxes
from pretrain.engines.stages import build_stages, held_weights, save_memory, this_device, whole_weights
from pretrain.parallel import ParallelLayout, bucket_elements, check_layout, megatron_settings
from pretrain.row_tensors import Row
from pretrain.sharded_files import read_boxes
from pretrain.system.light_compiler import uncompiled
from pretrain.tensor_boxes import TensorBox

NO_DECAY = "has_no_decay"
"""Attribute of parameters, by which megatron-core groups them."""


def make(config: TrainConfig, model: ModelConfig) -> MegatronEngine:
    """Build the engine from a run's configuration."""
    run = config.run
    return MegatronEngine(
        model,
        config.optim,
        run.precision,
        config.data.sequence_length,
        run.seed,
        config.parallel,
        run.kernels,
        run.fp8,
    )


class MegatronEngine:
    """Model and optimizer of this rank. `runtime.start_distributed` must have made the process groups of `parallel`."""

    def __init__(
        self,
        model: ModelConfig,
        optim: OptimSection,
        precision: str,
        sequence_length: int,
        seed: int,
        parallel: ParallelLayout = ParallelLayout(),
        kernels: str = TORCH,
        fp8: str = "none",
    ):
        check_layout(parallel, model)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        half = self.dtype == torch.bfloat16
        self.model_config, self.optim, self.sequence_length, self.seed = model, optim, sequence_length, seed
        self.sequence_parallel, self.fused = parallel.sequence, kernels != TORCH
        self.device = this_device()
        sums = torch.float32 if parallel.gradients == "fp32" else self.dtype
        # Fused: matrix products add weights' gradients to the buffers below. Not with hooks on saved tensors, which give
        # megatron-core another tensor than the weight, without the attribute by which it says that it has added.
        addable = half and not parallel.recompute_cheap
        in_product = addable and gpu_kernels.weight_gradients_add(self.device, sums)
        config = transformer_config(
            model,
            kernels=kernels,
            fp8=fp8,
            gradient_accumulation_fusion=self.fused or in_product,
            hidden_dropout=optim.dropout,
            bf16=half,
            params_dtype=self.dtype,
            pipeline_dtype=self.dtype,
            calculate_per_token_loss=True,
            **megatron_settings(parallel, model.num_hidden_layers),
        )
        with torch.device(self.device):  # where they stay
            self.stages = build_stages(model, config)
        save_memory(self.stages, parallel)
        rank = parallel_state.get_tensor_model_parallel_rank()
        initialise(model, held_weights(self.stages), seed, rank, parallel.tensor)
        freeze(optim.freeze, model, held_weights(self.stages))
        let_gradients_through(self.stages)
        data_ranks = parallel_state.get_data_parallel_group().size()
        overlap = parallel.overlap and data_ranks > 1
        self.gathers_late = (
            overlap and parallel.distributed_optimizer
        )  # weights, by the modules that the next forward calls
        buckets = DistributedDataParallelConfig(
            grad_reduce_in_fp32=not half or parallel.gradients == "fp32",
            use_distributed_optimizer=parallel.distributed_optimizer,
            overlap_grad_reduce=overlap,
            overlap_param_gather=self.gathers_late,
            bucket_size=bucket_elements(data_ranks),
        )
        self.modules = [
            DistributedDataParallel(
                config,
                buckets,
                Float16Module(config, stage) if half else stage,
                disable_bucketing=number > 0,  # required by megatron-core for all but the first of interleaved stages
            )
            for number, stage in enumerate(self.stages)
        ]
        self.sums: list[Tensor] = []
        if in_product and not self.fused:
            for stage, module in zip(self.stages, self.modules):
                self.sums += begin_with_products(stage, module)
        if overlap:
            config.no_sync_func = overlapping.only_after_the_last_row(self.modules)
        if self.gathers_late:
            for stage, module in zip(self.stages, self.modules):
                overlapping.gather_head_with_norm(stage, module)
        settings = OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.beta1,
            adam_beta2=optim.beta2,
            adam_eps=optim.eps,
            clip_grad=optim.clip_grad,
            bf16=half,
            params_dtype=self.dtype,
            use_distributed_optimizer=parallel.distributed_optimizer,
            overlap_param_gather=self.gathers_late,
        )
        with uncompiled():
            self.optimizer = get_megatron_optimizer(settings, self.modules, _without_decay(self.stages, optim))
        update.fuse(self.optimizer)
        # The modules keep this config: named there, the optimizer, whose views of weights hold the modules where no garbage
        # collector looks, would keep its process groups for ever. So grad_scale_func stays unset (fp32 and bf16 losses are
        # not scaled), and what is called when gradients are there knows a list and not this engine.
        self.ready = [moment(self.device)]  # time at which this rank had its gradients, before they are reduced
        config.finalize_model_grads_func = functools.partial(_finish_gradients, self.ready, self.device)

    def train_step(self, rows: Sequence[Row], lr: float, sound: Sound = finite) -> StepFigures:
        """One optimizer step on this rank's rows, each a microbatch; the loss is the mean over target tokens."""
        set_hyperparameters(self.optimizer.param_groups, self.optim, lr)
        for module in self.modules:
            module.train()
            module.zero_grad_buffer()
        self.optimizer.zero_grad()
        begun = moment(self.device)
        sums = self._run(rows, forward_only=False)
        check_written(self.sums)
        self.optimizer.prepare_grads()
        norm = update.gradient_norm(self.optimizer, self.device)
        *totals, norm = torch.cat((sums, norm.double()[None])).tolist()  # the only host synchronization
        figures = figures_of(totals)
        figures.alone = seconds_between(begun, self.ready[0])
        # Gradients are those of the sum over target tokens so far.
        mean = 1 / max(1, figures.tokens_text + figures.tokens_image)
        figures.grad_norm = norm * mean
        figures.updated = math.isfinite(figures.grad_norm) and sound(figures)
        if figures.updated:
            update.scale_gradients(self.optimizer, mean * update.clip_factor(figures.grad_norm, self.optim.clip_grad))
            with uncompiled():
                self.optimizer.step_with_ready_grads()
        return figures

    def evaluate(self, rows: Sequence[Row]) -> StepFigures:
        """Losses of rows, without gradients."""
        for module in self.modules:
            module.eval()
        with torch.no_grad():
            return figures_of(self._run(rows, forward_only=True).tolist())

    def _run(self, rows: Sequence[Row], forward_only: bool) -> Tensor:
        """Run megatron-core's forward-backward schedule -> float64 [4] on the device: `loss_sums` over all rows of all
        ranks."""
        outputs = get_forward_backward_func()(
            forward_step_func=self._forward_step,
            data_iterator=[iter(rows) for _ in self.modules] if len(self.modules) > 1 else iter(rows),
            model=self.modules if len(self.modules) > 1 else self.modules[0],
            num_microbatches=len(rows),
            seq_length=self.sequence_length,
            micro_batch_size=1,
            forward_only=forward_only,
        )
        if outputs:  # of the last stage
            sums = torch.stack([output["sums"] for output in outputs]).double().sum(0)
        else:
            sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for group in (parallel_state.get_data_parallel_group(), parallel_state.get_pipeline_model_parallel_group()):
            if group.size() > 1:
                torch.distributed.all_reduce(sums, group=group)
        return sums

    def _forward_step(self, rows: Iterator[Row], module):
        row = next(rows).to(self.device)
        config = self.model_config
        dropping = self.optim.dropout and module.training
        routing = routing_of(row, config, self.dtype, self.seed, bool(dropping), self.sequence_parallel, self.fused)
        output = module(row.ids, row.labels, row.targets, routing, self.optim.image_loss_weight)
        vocabulary = config.vocabulary

        def loss_function(output: tuple[Tensor, Tensor, Tensor]):
            losses, labels, total = output
            # Tokens are counted in the sums; a third number, which megatron-core would divide by, is asked for all the same.
            return total, 0, {"sums": loss_sums(losses, labels, vocabulary)}

        return output, loss_function

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimizer; None on a stage without weights."""
        return next((inner.optimizer for inner in update.inner_optimizers(self.optimizer)), None)

    def settle(self) -> None:
        """Complete the parameter all-gather, for readers of weights outside of a step. A collective: all ranks call
        it."""
        if self.gathers_late:
            for module in self.modules:
                module.start_param_sync(force_sync=True)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (training name, tensor on the CPU) of every weight, in the training dtype. A collective: all ranks call
        it."""
        self.settle()
        return whole_weights(self.stages)

    def boxes(self) -> list[TensorBox]:
        """Weights and optimizer state that this rank writes, as views that the next update changes."""
        self.settle()
        return boxes_to_write(self.stages, self.optimizer)

    def load(self, folder: Path, steps: int) -> None:
        """Load weights and optimizer state after `steps` updates, written by any parallel layout.

        Raises UserError when the checkpoint is of another model or precision.
        """
        weights = weight_boxes(self.stages)
        states = optimizer_boxes(self.stages, self.optimizer)
        check_stored(folder, [*weights, *states])
        read_boxes(folder, [*weights, *states])
        set_adam_steps(self.optimizer, steps)

    def load_weights(self, folder: Path) -> None:
        """Load weights only, of any stored precision, at the start of a new run. Raises UserError."""
        read_boxes(folder, weight_boxes(self.stages))
        self.optimizer.reload_model_params()


def _without_decay(stages: Sequence[UniXTrainingModel], optim: OptimSection) -> dict[ParamKey, Any]:
    """megatron-core's overrides of parameter groups: what `decays` leaves out, in place of its own choice of 1-D ones."""
    for name, parameter in held_weights(stages):
        setattr(parameter, NO_DECAY, not decays(name, parameter.dim(), optim))
    return {ParamKey(attr=NO_DECAY): {"wd_mult": 0.0}}


def _finish_gradients(ready: list, device: torch.device, modules, _tokens, **keywords) -> None:
    ready[0] = moment(device)  # after this a slow rank cannot be told from those that wait for it
    finalize_model_grads(modules, None, **keywords)  # without tokens: the update divides by them
