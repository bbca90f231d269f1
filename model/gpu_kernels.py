"""Kernels for GPUs that torch has no operation for: functions that its compiler makes one kernel of, and matrix products
that add to a float32 sum.

Neither is needed: each says in one line why it is not there, and torch's own operations do the same in more passes over
memory. Nothing here is used on a CPU, where compiling costs more than it saves.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretrain.system.errors import UserError

CHECKED = 8
"""Rows of a compiled function's first results that are compared with the function by itself."""


class OneKernel:
    """A function of tensors that torch.compile makes one kernel of, at its first call.

    Called, it gives None where there is no such kernel: the caller does the same by torch's own operations. `sums`: it adds
    up many numbers, in an order that depends on the sizes it is first called with; deterministic runs leave it out.
    """

    def __init__(self, function: Callable, named: str, sums: bool = False):
        self.function, self.named, self.sums = function, named, sums
        self.compiled: Callable | None = None
        self.failed = self.checked = False

    def _check(self, found: list[Any], expected: list[Any]) -> None:
        """Raises UserError if the first rows are not what the function gives by itself: what was overwritten cannot be made
        again. Compiled code has been seen to be wrong: torch 2.13 takes code for another CPU's vectors from its cache."""
        for ours, exact in zip(found, expected):
            if not torch.allclose(ours[:CHECKED].float(), exact.float(), rtol=2**-6, atol=1e-3, equal_nan=True):
                raise UserError(
                    f"{self.named} as torch {torch.__version__} compiles it is wrong on this device: take another version of "
                    "torch or Triton, or set run.deterministic=true if it is the softmax"
                )

    def __call__(self, *arguments: Tensor | None) -> Any:
        """The function's result, or None. The first dimension of every tensor may have another size in each call."""
        if self.failed or (self.sums and torch.are_deterministic_algorithms_enabled()):
            return None
        try:
            if self.compiled is None:
                # fullgraph: what the compiler gives up on raises, and is not run piece by piece with more memory
                self.compiled = torch.compile(self.function, fullgraph=True)
            given = [None if each is None else each.detach() for each in arguments]
            for each in given:
                if each is not None:
                    torch._dynamo.maybe_mark_dynamic(each, 0)
            with torch.no_grad():
                if self.checked:
                    return self.compiled(*given)
                some = [None if each is None else each[:CHECKED].clone() for each in given]
                found, self.checked = self.compiled(*given), True
                self._check([found, given[0]], [self.function(*some), some[0]])
                return found
        except (torch.OutOfMemoryError, UserError):
            raise
        except (
            Exception
        ) as error:  # a compiler that is missing or fails: of torch, Triton, C or CUDA, each with its own
            self.failed = True
            _say(f"{self.named} is not compiled, and takes more passes over memory: {_cause(error)}")
            return None


def add_product(total: Tensor, a: Tensor, b: Tensor, first: bool = False) -> None:
    """total += a @ b: total float32 or of the factors' dtype [m, n], a [m, k], b [k, n]; first: what is in `total` before
    counts as 0, and is not read.

    Of bfloat16 the product is not rounded before it is added where `products_add`; elsewhere it is.
    """
    if total.is_cuda and total.dtype != a.dtype and products_add(total.device):
        _in_product(total, a, b, 0 if first else 1)
        return
    if first and total.dtype == a.dtype == torch.bfloat16:
        torch.mm(a, b, out=total)
        return
    if first:
        total.zero_()
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _in_product(total: Tensor, a: Tensor, b: Tensor, beta: int = 1) -> None:
    torch.addmm(total, a, b, beta=beta, out_dtype=torch.float32, out=total)


def _by_itself(total: Tensor, a: Tensor, b: Tensor) -> None:
    made = torch.full_like(total, torch.nan)
    _in_product(made, a, b, 0)
    total += made


@functools.cache
def products_add(device: torch.device) -> bool:
    """Whether matrix products of this GPU add to a float32 sum, tried once."""
    why = trouble(_in_product, device) or trouble(_by_itself, device)
    if why:
        _say(f"matrix products do not add to float32 sums, which are gone over once more: {why}")
    return not why


def trouble(add: Callable[[Tensor, Tensor, Tensor], Any], device: torch.device) -> str:
    """Why `add`, with the arguments of `add_product`, is of no use on this device; "" where it is right.

    Tried twice on one sum, of whole numbers and a small fraction: float32 holds every result exactly, bfloat16 does not.
    """
    gradient = (torch.arange(48 * 32, device=device) % 23 - 11).view(48, 32)
    given = (torch.arange(48 * 16, device=device) % 19 - 9).view(48, 16)
    total = torch.full((32, 16), 1 + 2.0**-8, device=device)
    # on the CPU, where whole numbers are multiplied as such
    expected = total.cpu().double() + 2 * (gradient.cpu().t() @ given.cpu())
    try:
        for _ in range(2):
            add(total, gradient.bfloat16().t(), given.bfloat16())
        right = torch.equal(total.cpu().double(), expected)
    except Exception as error:  # an operation that this build, device or library does not have
        return _cause(error)
    return "" if right else "the sum of a small product is wrong"


class WeightGradients:
    """The functions of apex's module fused_weight_gradient_mlp_cuda that megatron-core calls for a weight's sum of gradients.

    A sum with an attribute `overwritten` begins with the next product: what is in it is of the step before.
    """

    @staticmethod
    def wgrad_gemm_accum_fp32(given: Tensor, gradient: Tensor, total: Tensor) -> None:
        """total [out, in] += gradient.t() @ given, of the tokens of `given` [tokens, in] and `gradient` [tokens, out]."""
        first = vars(total).pop("overwritten", False)
        if len(given):
            add_product(total, gradient.t(), given, first)
        elif first:
            total.zero_()

    wgrad_gemm_accum_fp16 = wgrad_gemm_accum_fp32  # megatron-core's name for sums in bfloat16


def weight_gradients_add(device: torch.device, sums: torch.dtype) -> bool:
    """Let megatron-core's linear layers add their weights' bfloat16 gradients to buffers of dtype `sums` in the matrix product;
    says whether that works.

    By `WeightGradients` or, where torch has no such product, by apex's kernel. To be called before the layers are built.
    """
    from megatron.core.tensor_parallel import layers

    if device.type != "cuda":
        return False
    if sums == torch.bfloat16 or products_add(device):
        vars(layers).update(fused_weight_gradient_mlp_cuda=WeightGradients, _grad_accum_fusion_available=True)
        return True
    apex = vars(layers).get("fused_weight_gradient_mlp_cuda")
    if apex is None or apex is WeightGradients:
        return False
    return not trouble(lambda total, a, b: apex.wgrad_gemm_accum_fp32(b, a.t(), total), device)


def in_use(device: torch.device) -> str:
    """What of this is used on a device, for a run's log; "" on a CPU."""
    if device.type != "cuda":
        return ""
    deterministic = torch.are_deterministic_algorithms_enabled()
    compiled = "rotary embedding" if deterministic else "the head's softmax, rotary embedding"
    sums = "added" if products_add(device) else "rounded, then added"
    return f"compiled at their first use: {compiled}; matrix products are {sums} to float32 sums"


def _cause(error: BaseException) -> str:
    error = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'without a word'}"


def _say(line: str) -> None:
    """Warn, on rank 0 alone: the others have the same software."""
    from pretrain.system.logs import LOGGER

    if os.environ.get("RANK", "0") == "0":
        LOGGER.warning(line)
