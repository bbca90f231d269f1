"""Time of each part of a step: markers between the parts of the model, in a separate pass.

The model is a chain, and so is its backward pass. A mark is the identity, put on the one tensor that goes from a part
to the next; it stops the clock when it is passed forward and again when it is passed backward, and the time since the
mark before belongs to the part that lies between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from model import loss
from model.layer_kinds import SEPARATED, SHARED
from model.routing import RowRouting
from pretrain.engines.megatron import MegatronEngine
from pretrain.row_tensors import Row
from tools.benchmarks.paired import LR, now

TABLES, EMBEDDING, PERMUTE, HEAD, OPTIMIZER = "tables", "embedding", "permute", "head", "optimizer"
PARTS = (TABLES, EMBEDDING, SEPARATED, PERMUTE, SHARED, HEAD, OPTIMIZER)


class StopWatch:
    """Adds the time since the last call to the named part."""

    def __init__(self, device):
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)  # processor time on a CPU
        self.on_cpu = torch.device(device).type == "cpu"
        self.last = self._read()

    def _read(self) -> float:
        clocks = now(self.device)
        return clocks.cpu if self.on_cpu else clocks.wall

    def stop(self, part: str) -> None:
        """Count the time since the last stop as `part`."""
        at = self._read()
        self.seconds[part] += at - self.last
        self.last = at


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, watch, before, after):
        ctx.watch, ctx.after = watch, after
        watch.stop(before)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        ctx.watch.stop(ctx.after)
        return gradient, None, None, None


@contextmanager
def marked(engine: MegatronEngine, watch: StopWatch) -> Iterator[None]:
    """Context with markers in the model of a one-stage engine."""
    (model,) = engine.stages
    layers = list(model.decoder.layers)
    kinds = model.model_config.layer_kinds

    def mark(tensor, before: str, after: str):
        return _Mark.apply(tensor, watch, before, after)

    def enters(before: str, after: str):
        def hook(_module, args, kwargs):
            return args, {**kwargs, "hidden_states": mark(kwargs["hidden_states"], before, after)}

        return hook

    handles = [
        model.embedding.register_forward_pre_hook(lambda *_: watch.stop(TABLES)),
        layers[-1].register_forward_hook(lambda _module, _args, output: (mark(output[0], kinds[-1], HEAD), output[1])),
    ]
    for layer, before, kind in zip(layers, (EMBEDDING, *kinds), kinds):
        handles.append(layer.register_forward_pre_hook(enters(before, kind), with_kwargs=True))

    reorder, weighted_loss = RowRouting.reorder, loss.weighted_loss

    def marked_reorder(routing, hidden, order):
        kind = SHARED if order == "document" else SEPARATED
        return mark(reorder(routing, mark(hidden, kind, PERMUTE), order), PERMUTE, kind)

    def marked_loss(hidden, *rest):
        total, losses = weighted_loss(mark(hidden, HEAD, HEAD), *rest)
        return mark(total, HEAD, HEAD), losses

    run, finalize = engine._run, model.config.finalize_model_grads_func

    def marked_run(rows, forward_only):
        watch.stop(OPTIMIZER)  # gradient buffers were zeroed
        return run(rows, forward_only)

    def marked_finalize(*args, **kwargs):
        watch.stop(EMBEDDING)  # the last of the backward pass
        return finalize(*args, **kwargs)

    engine._run, model.config.finalize_model_grads_func = marked_run, marked_finalize
    try:
        with (
            patch.object(RowRouting, "reorder", marked_reorder),
            patch.object(loss, "weighted_loss", marked_loss),
        ):
            yield
    finally:
        del engine._run
        model.config.finalize_model_grads_func = finalize
        for handle in handles:
            handle.remove()


def part_seconds(engine: MegatronEngine, row: Row, short: float = 15.0) -> dict[str, float]:
    """Seconds of each part over one training step: forward, backward and recomputation together.

    "tables" is making the routing of the row; "head" includes the final norm, the look-up of target tokens and the loss;
    "optimizer" includes zeroing and scaling the gradients. The first step on a row is slower; one of less than `short`
    seconds is made again, and the second counts.
    """
    for _ in range(2):
        watch = StopWatch(engine.device)
        with marked(engine, watch):
            engine.train_step([row], LR)
            watch.stop(OPTIMIZER)
        if sum(watch.seconds.values()) > short:
            break
    return watch.seconds
