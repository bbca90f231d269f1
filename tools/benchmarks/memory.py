"""Peak memory of one long row, forward and backward, and whether its full logits are ever materialized."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import ModelConfig
from model.layer_kinds import SEPARATED, SHARED
from pretrain.engines.megatron import MegatronEngine
from pretrain.row_tensors import Row


def one_layer_of_each(config: ModelConfig) -> ModelConfig:
    """Model with one separated and one shared layer."""
    return dataclasses.replace(config, num_hidden_layers=2, layer_kinds=(SEPARATED, SHARED))


class LogitsWatch(TorchDispatchMode):
    """Records tensors whose last dimension is the vocabulary, forward and backward.

    Weights of the embedding and the head, and their gradients, have it as their first.
    """

    def __init__(self, vocab: int):
        super().__init__()
        self.vocab = vocab
        self.most_tokens = 0  # rows of the largest [tokens, vocab] tensor
        self.most_bytes = 0  # of all such tensors that were alive at a time
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            logits = isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == self.vocab
            if logits and tensor.is_contiguous():  # the weight's transpose is a view
                self._saw(tensor)
        return made

    def _saw(self, tensor: torch.Tensor) -> None:
        self.most_tokens = max(self.most_tokens, tensor.numel() // self.vocab)
        storage = tensor.untyped_storage()
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most_bytes = max(self.most_bytes, sum(size for _, size in self._alive.values()))


class SavedWatch:
    """Bytes that autograd saves for the backward pass, each storage once, without the model's weights."""

    def __init__(self, model: torch.nn.Module):
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._kept: list[StorageWeakRef] = []
        self.bytes = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Hook for every saved tensor."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._kept.append(StorageWeakRef(storage))  # keeps its address from being reused while we count
            self.bytes += storage.nbytes()
        return tensor


def process_memory(name: str) -> int:
    """Bytes of `name` (VmRSS: resident now, VmHWM: its peak) in this process's status on Linux."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {name}")


@dataclass(frozen=True)
class MemoryFigures:
    """Memory in bytes; `logits_tokens` is a count."""

    before: int  # resident with the libraries loaded and no model
    weights: int
    gradients: int  # the buffers that gradients are summed in
    ready: int  # resident with the model, its buffers and the optimizer's copies
    saved: int  # kept by autograd for the backward pass
    peak: int  # resident at most, over all
    logits_tokens: int  # tokens of the largest tensor of logits
    logits_bytes: int  # of all tensors of logits that were alive at a time
    logits_whole: int  # size of the full float32 logits of the row


def measure(make_engine: Callable[[], MegatronEngine], row: Row) -> MemoryFigures:
    """Forward and backward of `row`, once, in a fresh process; no optimizer step.

    On a GPU the allocator's figures stand in for the process's.
    """
    on_gpu = torch.cuda.is_available()
    before = torch.cuda.memory_allocated() if on_gpu else process_memory("VmRSS")
    engine = make_engine()
    (model,) = engine.stages
    ready = torch.cuda.memory_allocated() if on_gpu else process_memory("VmRSS")
    logits, saved = LogitsWatch(model.model_config.vocab_size), SavedWatch(model)
    forward_step = engine._forward_step

    def watched_forward_step(rows, module):
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            return forward_step(rows, module)

    engine._forward_step = watched_forward_step
    try:
        with logits:
            engine._run([row], forward_only=False)
    finally:
        del engine._forward_step
    return MemoryFigures(
        before=before,
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        gradients=sum(parameter.main_grad.nbytes for parameter in model.parameters()),
        ready=ready,
        saved=saved.bytes,
        peak=torch.cuda.max_memory_allocated() if on_gpu else process_memory("VmHWM"),
        logits_tokens=logits.most_tokens,
        logits_bytes=logits.most_bytes,
        logits_whole=4 * len(row.targets) * model.model_config.vocab_size,
    )


def memory_lines(figures: MemoryFigures) -> list[str]:
    """Memory in words, in GiB."""

    def gib(size: int) -> str:
        return f"{size / 2**30:6.2f} GiB"

    ready_else = figures.ready - figures.before - figures.weights - figures.gradients
    step_else = figures.peak - figures.ready - figures.saved
    return [
        f"{gib(figures.peak)}  peak, of which",
        f"{gib(figures.before)}    libraries",
        f"{gib(figures.weights)}    weights",
        f"{gib(figures.gradients)}    gradient buffers",
        f"{gib(ready_else)}    else before the step (the optimizer's copies of bf16 weights)",
        f"{gib(figures.saved)}    kept for the backward pass",
        f"{gib(step_else)}    else during the step (gradients of the backward pass, logits)",
        f"logits: at most {figures.logits_tokens:,} tokens in a tensor, {gib(figures.logits_bytes).strip()} alive at a "
        f"time; whole they have {gib(figures.logits_whole).strip()} in float32",
    ]
