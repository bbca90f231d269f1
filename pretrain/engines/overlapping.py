"""Overlap in megatron-core: gradient reduce-scatter and parameter all-gather run beside computation."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager

from megatron.core.distributed import DistributedDataParallel

from model.uni_x import UniXTrainingModel


def only_after_the_last_row(modules: Sequence[DistributedDataParallel]):
    """Context for megatron-core's schedules (no_sync): gradients are accumulated without communication, for all rows
    but the last.

    A list of such contexts where stages are interleaved. It names the modules weakly: they keep the configuration that it is
    put in, and would keep each other.
    """

    def of(module: weakref.ref):
        @contextmanager
        def no_sync():
            with ExitStack() as stack:
                stack.enter_context(module().no_sync())
                yield

        return no_sync

    made = [of(weakref.ref(module)) for module in modules]
    return made if len(made) > 1 else made[0]


def gather_head_with_norm(stage: UniXTrainingModel, module: DistributedDataParallel) -> None:
    """Wait for the all-gather of the LM head's matrix at the norm before it.

    megatron-core waits for the weights of a module when the module is called. The head's is read beside its module, which
    never is: it would be that of before the update.
    """
    if not stage.post_process:
        return
    group = module.param_to_bucket_group.get(stage.output_weight())
    if group is None:  # frozen
        return

    def wait(*_) -> None:
        group.finish_param_sync()

    stage.decoder.final_layernorm.register_forward_pre_hook(wait)
