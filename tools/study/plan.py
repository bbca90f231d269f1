"""Plan of the study: arms, which differ in their layer kinds alone, seeds, and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

TEXT_SHARE = 72 / (72 + 65)  # of training tokens: the paper's 72B of text and 65B of pictures (arXiv 2509.24365)
SUGGESTED = "suggested"
# arm -> settings of the model section. Of six layers: 2 + 1 is nearest to the paper's 9 + 5 of 28; the other two Uni-X arms
# have as many separated layers, hence as many parameters.
ARMS: dict[str, dict[str, Any]] = {
    "shared": {"kind": "shared"},
    "moe_hard": {"kind": "moe_hard", "every": 2},
    "mot": {"kind": "mot", "every": 1},
    "unix_shallow": {"kind": "separated", "shallow": 3},
    "unix_deep": {"kind": "separated", "deep": 3},
    "unix_both": {"kind": "separated", "shallow": 2, "deep": 1},
}
LAYERS, SEPARATED_LAYERS = 6, 3
WORDS = {
    "shared": "shared transformer",
    "moe_hard": "hard MoE",
    "mot": "Mixture-of-Transformers",
    "unix_shallow": "Uni-X 3:0",
    "unix_deep": "Uni-X 0:3",
    "unix_both": "Uni-X 2:1",
    SUGGESTED: "Uni-X as suggested by conflict",
}


@dataclass(frozen=True)
class Preset:
    """Sizes of a preset: presets differ in nothing else."""

    name: str
    hidden_size: int
    intermediate_size: int
    sequence_length: int
    steps: int
    learning_rates: tuple[float, ...]  # learning rates: each arm is tuned over the same ones, with the first seed
    seeds: tuple[int, ...]
    pairs: int
    rows: int
    blocks: int
    targets: int


PRESETS = {
    "quick": Preset("quick", 96, 256, 1024, 100, (1e-3, 3e-3), (0, 1), 24, 8, 8, 64),
    "full": Preset("full", 128, 384, 2048, 850, (1e-3, 2e-3, 4e-3), (0, 1, 2), 48, 32, 16, 256),
}
SPEED_ROUNDS = 9  # steps of each arm that are timed


@dataclass(frozen=True)
class Cell:
    """One training: an arm at a learning rate, with a seed."""

    arm: str
    model: tuple[tuple[str, object], ...]  # settings of the model section
    learning_rate: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.arm}-lr{self.learning_rate:g}-seed{self.seed}"

    def to_dict(self) -> dict:
        """The cell as JSON types."""
        return {**asdict(self), "model": dict(self.model)}


def tuning_cells(preset: Preset) -> Iterator[Cell]:
    """Every arm at every learning rate, with the first seed.

    At full length: what is best in short runs need not be best in long ones, and arms differ in how far it is off.
    """
    for arm, model in ARMS.items():
        for rate in preset.learning_rates:
            yield Cell(arm, tuple(model.items()), rate, preset.seeds[0], preset.steps)


def main_cells(preset: Preset, rates: dict[str, float]) -> Iterator[Cell]:
    """The compared runs, seed by seed, so that an interrupted study has complete comparisons.

    Those with the first seed are of `tuning_cells`.
    """
    for seed in preset.seeds:
        for arm, model in ARMS.items():
            if arm in rates:
                yield Cell(arm, tuple(model.items()), rates[arm], seed, preset.steps)


def suggested_cells(preset: Preset, proposal: dict, rates: dict[str, float]) -> list[Cell]:
    """Runs of the proposal; none when it is an arm already, or separates nothing. It takes the rate of `unix_both`."""
    model = {"kind": "separated", "shallow": proposal["shallow"], "deep": proposal["deep"]}
    if not proposal["shallow"] + proposal["deep"] or same_arm(proposal) or "unix_both" not in rates:
        return []
    return [Cell(SUGGESTED, tuple(model.items()), rates["unix_both"], seed, preset.steps) for seed in preset.seeds]


def same_arm(proposal: dict) -> str | None:
    """The arm that equals the proposal, if any."""
    for arm, model in ARMS.items():
        layers = (model.get("shallow", 0), model.get("deep", 0))
        if model.get("kind") == "separated" and layers == (proposal["shallow"], proposal["deep"]):
            return arm
    return None


def settings(preset: Preset, cell: Cell, paths: dict) -> dict:
    """Configuration of a cell's training. paths: run, tokenizer, heldout; sources as the file has them."""
    return {
        "run": {"folder": paths["run"], "steps": cell.steps, "seed": cell.seed},
        "model": {
            "hidden_size": preset.hidden_size,
            "intermediate_size": preset.intermediate_size,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "flavour": "qwen3",
            "tie_word_embeddings": False,
            "rope_theta": 10_000.0,
            "initializer_range": 0.06,
            **dict(cell.model),
        },
        "data": {
            "tokenizer": paths["tokenizer"],
            "vq": "openmoji-64",
            "sources": paths["sources"],
            "heldout": paths["heldout"],
            "sequence_length": preset.sequence_length,
            "global_batch_size": 1,
            "text_to_image": 0.8,  # the paper's ablations
            "unconditional": 0.1,
            "first_text": 0.8,
        },
        "optim": {
            "lr": cell.learning_rate,
            "final_lr": cell.learning_rate / 10,
            "warmup_steps": max(1, cell.steps // 20),
            "weight_decay": 0.1,
        },
        "checkpoint": {"every": max(50, cell.steps // 4), "keep": 1},
        "log": {
            "every": max(1, cell.steps // 20),
            "tensorboard": False,
            "heldout_every": max(1, cell.steps // 5),
            "heldout_rows": 16,
        },
    }
