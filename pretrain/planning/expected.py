"""Expected memory of a configured run: the planner's count for the configured layout."""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ModelConfig
from model.weight_shapes import share_sizes, stage_shapes
from pretrain.config import TrainConfig
from pretrain.engines import ENGINES, named
from pretrain.parallel import stage_layers
from pretrain.planning.activations import RowShape, activation_bytes
from pretrain.planning.cuts import stages_of
from pretrain.planning.layouts import GIB, rows_under_way
from pretrain.planning.memory import StaticBytes, static_bytes
from pretrain.planning.zero import buffer_bytes, zero_bytes


@dataclass(frozen=True)
class Expected:
    """Bytes of the rank that needs most."""

    static: StaticBytes
    activations: int
    buffers: int  # of DeepSpeed

    @property
    def total(self) -> int:
        """Peak bytes of a step."""
        return self.static.total + self.activations + self.buffers

    def __str__(self) -> str:
        parts = {
            "weights": self.static.weights,
            "gradients": self.static.gradients,
            "optimizer": self.static.optimizer,
            "activations": self.activations,
            "buffers": self.buffers,
        }
        return f"about {self.total / GIB:.1f} GiB on a device: " + ", ".join(
            f"{name} {size / GIB:.1f}" for name, size in parts.items() if size
        )


def expected_memory(config: TrainConfig, model: ModelConfig, row: RowShape, data_ranks: int) -> Expected:
    """Expected memory of the fullest rank. Driver, libraries and fragmentation take more, often a tenth of a device."""
    return max(expected_ranks(config, model, row, data_ranks), key=lambda rank: rank.total)


def expected_ranks(config: TrainConfig, model: ModelConfig, row: RowShape, data_ranks: int) -> list[Expected]:
    """Expected memory of a rank of each pipeline rank, first stage first."""
    of_its_own = ENGINES[config.run.engine].memory
    if of_its_own:
        return named(of_its_own)(config, model, row, data_ranks)
    parallel, half = config.parallel, config.run.precision == "bf16"
    width, microbatches = 2 if half else 4, config.data.global_batch_size // data_ranks
    layers = stage_layers(parallel.layout, parallel.pipeline, model.num_hidden_layers)
    stages = stages_of([stage.count("t") for stage in layers])
    ranks = []
    for place in range(parallel.pipeline):
        under_way = rows_under_way(parallel, microbatches, place)
        static, activations = [], 0
        for stage in stages[place :: parallel.pipeline]:  # several where stages are interleaved
            static.append(static_bytes(model, stage, parallel, data_ranks, half))
            activations += activation_bytes(model, stage, row, parallel, width, under_way).peak
        held = StaticBytes(
            *(
                sum(getattr(each, name) for each in static)
                for name in ("parameters", "weights", "gradients", "optimizer")
            )
        )
        ranks.append(Expected(held, activations, 0))
    return ranks


def zero_ranks(config: TrainConfig, model: ModelConfig, row: RowShape, data_ranks: int) -> list[Expected]:
    """Expected memory with DeepSpeed's ZeRO, which has one stage."""
    parallel, half = config.parallel, config.run.precision == "bf16"
    (stage,) = stages_of([model.num_hidden_layers])
    shapes = stage_shapes(model, 0, stage.layers, embedding=True, head=True)
    sizes = share_sizes(shapes, parallel.tensor)
    decays = {name: len(shape) > 1 and not name.endswith(".bias") for name, shape in shapes.items()}
    activations = activation_bytes(model, stage, row, parallel, 2 if half else 4, 1).peak
    held = zero_bytes(sizes, decays, data_ranks, config.zero, half)
    return [Expected(held, activations, buffer_bytes(sizes, config.zero, half))]
