"""What of transformers' common suites is not run, and why: name of a test (its beginning) -> (configurations, reason).

No name of a configuration means all.
"""

from __future__ import annotations

CONFIGURATIONS = ("shared", "separated", "mixed")
ROUTED = ("separated", "mixed")

SKIPS: dict[str, tuple[tuple[str, ...], str]] = {
    "test_generation_tester_mixin_inheritance": (
        (),
        "asks for the generation suite, which the source distribution lacks; test_hf_generation.py tests it",
    ),
    "test_gradient_checkpointing_enable_disable": (
        (),
        "with transformers 5 looks for GradientCheckpointingLayer; a layer of two branches is recomputed by one function, "
        "and test_hf_parity.py compares its gradients",
    ),
    "test_training_gradient_checkpointing": (
        (),
        "with transformers 5 looks for GradientCheckpointingLayer, too",
    ),
    "test_bc_cache_name_forward": (
        (),
        "asks for a warning where `past_key_values` is passed; it is a name of ours in every version of transformers",
    ),
    "test_inputs_embeds": (
        ROUTED,
        "embeddings do not say which tokens are of pictures: they are refused without `modality` (test_hf_as_usual.py)",
    ),
}

ONLY_IN_5 = (
    "test_gradient_checkpointing_enable_disable",
    "test_training_gradient_checkpointing",
    "test_bc_cache_name_forward",
)
"""Of these, what transformers 4.57 runs."""
