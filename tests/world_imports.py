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

torch.set_num_threads(1)
runtime.install()  # before anything imports megatron
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as pretrain.engines.zero3_setup has it where there is no GPU

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed  # noqa: F401

    import pretrain.loader_imports  # noqa: F401  (the same process may fork loader workers)
    import tests.pretrain.checkpoint_jobs
    import tests.pretrain.planning.planning_jobs
    import tests.pretrain.zero3_jobs  # noqa: F401

gc.collect()
gc.freeze()
