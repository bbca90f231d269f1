"""Dispatch mode that records a step: memory, host synchronizations, copies, FLOPs, collectives."""

from __future__ import annotations

import weakref
from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

LOOKUPS = ("aten.gather", "aten.scatter", "aten.index")
SNAPSHOT = 1.002  # a peak this much above the last one is examined


class Watch(TorchDispatchMode):
    """Records operations inside a FakeTensorMode. A number that the host reads from a tensor is 1 here."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, tuple[int, str]] = {}  # storage -> bytes, description
        self.now = self.peak = 0
        self.at_peak: list[tuple[int, str]] = []
        self.phase = self.peak_phase = "build"
        self.reset()

    def reset(self) -> None:
        """Restart the counts; live tensors stay counted."""
        self.reads: Counter = Counter()
        self.copies: Counter = Counter()
        self.sent: Counter = Counter()
        self.synchronised = self.flops = self.moved = 0
        self.peak, self.seen = self.now, 0

    @contextmanager
    def counted(self):
        """The mode, with operations counted too that do not go through the dispatcher."""

        def tolist(tensor):
            if tensor.device.type != "cpu":
                self.reads["tolist"] += 1
            return [1.0] * tensor.numel() if tensor.dim() else 1.0

        def synchronise(*_):
            self.synchronised += 1

        with patch.object(FakeTensor, "tolist", tolist), patch.object(torch.cuda, "synchronize", synchronise), self:
            yield self

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        name = str(function).removesuffix(".default")
        if name == "aten._local_scalar_dense":
            if arguments[0].device.type != "cpu":
                self.reads[name] += 1
            return 1 if not arguments[0].dtype.is_floating_point else 1.0
        sending = name.startswith("c10d.")
        if sending and "coalesced" in name:  # torch propagates the other fake tensors
            from torch._C._distributed_c10d import FakeWork

            out = FakeWork().boxed()
        else:
            out = function(*arguments, **keywords)
        if sending:
            tensors = [each for each in tree_iter(arguments) if isinstance(each, torch.Tensor)]
            self.sent[name.split(".")[1].strip("_")] += max((each.nbytes for each in tensors), default=0)
        self._count_copy(name, arguments, out)
        if (
            name == "aten.addmm.dtype_out"
        ):  # a sum that is wider than the factors, whose dtype a product alone would write
            read = 0 if keywords.get("beta") == 0 else arguments[0].nbytes
            self.moved += read + out.nbytes - out.numel() * arguments[1].element_size()
        if not self._count_flops(name, arguments) and not sending and "attention" not in name and "_attn" not in name:
            self._count_moved(function, name, arguments, keywords, out)
        for each in tree_iter(out):
            if isinstance(each, FakeTensor) and each.device.type == "cuda":
                self._meet(each, name)
        return out

    def _count_copy(self, name: str, arguments, out) -> None:
        if name == "aten._to_copy" and isinstance(out, FakeTensor):
            there, here = arguments[0].device.type, out.device.type
        elif name == "aten.copy_":
            there, here = arguments[1].device.type, arguments[0].device.type
        else:
            return
        if there == "cuda" and here == "cpu":
            self.reads[f"{name} to the CPU"] += 1
        elif there == "cpu" and here == "cuda":
            self.copies["to the device"] += 1

    def _count_moved(self, function, name: str, arguments, keywords, out) -> None:
        """Bytes that a kernel reads and writes, each tensor once. What it works on in place is read too, unless it is
        filled. Of an embedding table only looked-up rows count. A softmax over a whole vocabulary reads it three
        times."""
        if function.is_view or "empty" in name or "view" in name or name.startswith(("prim.", "aten.detach")):
            return
        filled = name.startswith(("aten.zero_", "aten.fill_", "aten.copy_"))
        read = arguments if name.endswith(".out") else (arguments, keywords)
        given = [each for each in tree_iter(read) if isinstance(each, FakeTensor)]
        made = [each for each in tree_iter(out) if isinstance(each, FakeTensor)]
        sizes = [each.nbytes for each in (*(given[1:] if filled else given), *made) if each.device.type == "cuda"]
        if (name.startswith(LOOKUPS) or name == "aten.embedding") and sizes:
            sizes = 2 * [min(sizes)]
        elif name == "aten._log_softmax":
            sizes += 2 * sizes[:1]
        self.moved += sum(sizes)

    def _count_flops(self, name: str, arguments) -> bool:
        kind = name.split(".")[1] if "." in name else name
        if kind in ("mm", "bmm"):
            a, b = arguments[:2]
        elif kind in ("addmm", "addmm_", "baddbmm"):
            a, b = arguments[1:3]
        else:
            return False
        self.flops += 2 * a.numel() * b.shape[-1]
        return True

    def _meet(self, tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        size = storage.nbytes()
        self.alive[key] = (size, f"{list(tensor.shape)} {str(tensor.dtype)[6:]} of {name}")
        weakref.finalize(storage, self._forget, key)
        self.now += size
        if self.now > self.peak:
            self.peak, self.peak_phase = self.now, self.phase
            if self.peak > SNAPSHOT * self.seen:
                self.seen = self.peak
                self.at_peak = sorted(self.alive.values(), reverse=True)[:8]

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)[0]
