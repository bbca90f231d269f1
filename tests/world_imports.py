"""What the processes of `tests.parallel_world` need, imported once by the process that they are forked from.

What is imported is frozen: every job ends with a garbage collection, which would go over half a million objects of modules,
a third of a second on each rank.
"""

from __future__ import annotations

import gc
import os
import warnings

import torch

from pretrain import runtime
from pretrain.system.light_compiler import nothing_compiled

torch.set_num_threads(1)
runtime.install()  # before anything imports megatron
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as pretrain.engines.zero3_setup has it where there is no GPU

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401  (DeepSpeed's first step asks for it: a second on each rank)
    from deepspeed.utils import nvtx

    import pretrain.engines.megatron
    import pretrain.engines.zero3
    import pretrain.loader_imports  # noqa: F401  (the same process may fork loader workers)
    import pretrain.start  # noqa: F401
    import tests.pretrain.checkpoint_jobs
    import tests.pretrain.planning.planning_jobs
    import tests.pretrain.zero3_jobs  # noqa: F401

    with nothing_compiled():  # as pretrain.engines.zero3_setup imports it
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
nvtx.enable_nvtx = (
    False  # marks for a GPU's profiler around each of some thousand calls of a step; no device hears them here
)
gc.collect()
gc.freeze()
