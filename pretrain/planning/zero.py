"""Memory of a rank under DeepSpeed's ZeRO, to the byte, and its temporary buffers.

Stage 3 cuts every weight over the data-parallel ranks, each part rounded up; small weights are there whole as well. The
float32 weights that Adam updates are a copy, also where training is in float32, and gradients are summed in float32.
Stages 1 and 2 lay the weights of a group end to end, padded to twice the ranks. With offload the CPU holds the optimizer
state, and of stages 2 and 3 the gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

from pretrain.config import ZeroSection
from pretrain.planning.memory import StaticBytes

LIVE = 10**9  # DeepSpeed's limit of gathered weights in elements, stage3_max_live_parameters
BUCKET = 2**27  # gradient bucket in elements; as in engines/zero3_setup.py
MASTER_AND_MOMENTS = 12  # bytes an element


def zero_bytes(
    sizes: Mapping[str, int], decays: Mapping[str, bool], ranks: int, zero: ZeroSection, half: bool
) -> StaticBytes:
    """Bytes between steps. sizes: elements of each weight on a tensor-parallel rank; decays: whether weight decay
    applies to it, which makes two groups; half: bfloat16 weights."""
    held, width = sum(sizes.values()), 2 if half else 4
    if zero.stage == 3:
        part = sum(-(-size // ranks) for size in sizes.values())
        whole = sum(size for size in sizes.values() if size <= zero.param_persistence_threshold)
        weights, gradients = width * (part + whole), 4 * part
    else:
        groups = [sum(size for name, size in sizes.items() if decays[name] is decay) for decay in (True, False)]
        padded = sum(-(-group // (2 * ranks)) * 2 * ranks for group in groups)
        part = padded // ranks
        weights, gradients = width * padded, 4 * (held if zero.stage == 1 else part)
    if zero.offload:
        return StaticBytes(held, weights, gradients if zero.stage == 1 else 0, 0)
    return StaticBytes(held, weights, gradients, MASTER_AND_MOMENTS * part)


def buffer_bytes(sizes: Mapping[str, int], zero: ZeroSection, half: bool) -> int:
    """Bytes of buffers at most during a step: gathered weights, and gradients in flight."""
    held = sum(sizes.values())
    gathered = min(held, LIVE) * (2 if half else 4) if zero.stage == 3 else 0
    return gathered + 4 * min(held, BUCKET)
