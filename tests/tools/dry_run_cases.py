"""A process of its own, which must not have imported torch before: dry runs of several layouts -> JSON on its last line."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pretrain.dry_run import fake_gpu

SMALL = ["model.num_hidden_layers=4", "model.shallow=1", "model.deep=1", "data.global_batch_size=16"]
ONE = ["parallel.tensor=1", "parallel.sequence=false"]
TWO = ["parallel.tensor=2", "parallel.sequence=true", "data.global_batch_size=8"]  # two rows a rank, as with one
CASES = {  # overrides of pretrain_3b.yaml on 8 GPUs
    "tp1": ONE,
    "tp1 20,480 tokens": [*ONE, "data.sequence_length=20480"],
    "tp2 sp": TWO,
    "tp2 sp recompute": [*TWO, "parallel.recompute=true"],
    "tp1 cheap": [*ONE, "parallel.recompute_cheap=true"],
    "tp2 sp cheap": [*TWO, "parallel.recompute_cheap=true"],
    "tp1 gradients bf16": [*ONE, "parallel.gradients=bf16"],
    "tp1 without overlap": [*ONE, "parallel.overlap=false"],
    "tp1 recompute": [*ONE, "parallel.recompute=true"],
    "tp2 sp pp2": [*TWO, "parallel.pipeline=2"],
    "fp32": [*ONE, "run.precision=fp32"],
    "tp2 sp fp32": [*TWO, "run.precision=fp32"],
    "mot": [*ONE, "model.kind=mot"],
    "moe_hard": [*ONE, "model.kind=moe_hard"],
    "shared": [*ONE, "model.kind=shared", "model.shallow=0", "model.deep=0"],
    "qwen3 untied": [*ONE, "model.flavour=qwen3", "model.tie_word_embeddings=false"],
}


COUNTED = ("tp1", "tp1 cheap", "tp1 gradients bf16", "tp1 20,480 tokens", "mot", "moe_hard", "shared", "qwen3 untied")


def moved(config, model, shape, static) -> float:
    """Bytes that the planner counts beside products and attention in a step of two rows on one rank of 8."""
    from pretrain.planning import passes
    from pretrain.planning.memory import gradient_width

    in_product = not config.parallel.recompute_cheap
    sums = gradient_width(config.parallel, True)
    row = sum(passes.layer_bytes(model, shape, kind, 2, in_product, sums) for kind in model.layer_kinds)
    begun = in_product * sum(passes.begun_bytes(model, kind, sums) for kind in model.layer_kinds)
    row += passes.embedding_bytes(model, shape, 2, sums) + passes.head_bytes(model, shape, 2, sums)
    row += passes.cheap_bytes(model, shape, 2) * len(model.layer_kinds) * config.parallel.recompute_cheap
    return 2 * row - begun + passes.update_bytes(static, config.parallel, 8, True, begun)


def main() -> None:
    """Run the cases that are named, or all."""
    fake_gpu.install()
    from pretrain.config import load_config
    from pretrain.dry_run.step import dry_step
    from pretrain.planning.expected import expected_ranks
    from pretrain.planning.shape import row_shape
    from pretrain.setup import sized_config

    found = {}
    for name in sys.argv[1:] or CASES:
        config = load_config("pretrain/configs/pretrain_3b.yaml", [*SMALL, *CASES[name]])
        model = sized_config(config.model, 151_936, 8_192, special=(0, 1, 2))
        shape, parallel = row_shape(config.data.sequence_length), config.parallel
        per_stage = 8 // parallel.pipeline
        planned = expected_ranks(config, model, shape, per_stage // parallel.tensor)
        found[name] = [
            {
                "planned": planned[stage].total,
                **dataclasses.asdict(dry_step(config, model, shape, 8, stage * per_stage)),
                "planned_moved": moved(config, model, shape, planned[stage].static) if name in COUNTED else 0,
                "rows": config.data.global_batch_size * parallel.tensor * parallel.pipeline // 8,
            }
            for stage in range(parallel.pipeline)
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
