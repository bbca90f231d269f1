"""Fused autograd functions for norm, rotary embedding and SwiGLU: fewer passes over memory, fewer saved activations.

Written for both directions by hand. Where a GPU has a fused kernel, that is used instead (see each function).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.gpu_kernels import OneKernel


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [tokens, heads, d] by tables [tokens, 1, d]; dimension i is paired with i + d / 2.

    Both halves of the tables are the same. The tables get no gradient.
    """
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, -1.0)

    @staticmethod
    def backward(ctx, gradient):
        return _rotated(gradient, *ctx.saved_tensors, 1.0), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` without a gradient, for a compiler: x is read once, and in bfloat16 rounded once."""
    return _turned(x, cos, sin, -1.0)


def turned_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The inverse of `turned`, which is its gradient."""
    return _turned(x, cos, sin, 1.0)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = (table[..., : first.shape[-1]].float() for table in (cos, sin))
    made = (first * cos + sign * (second * sin), second * cos - sign * (first * sin))
    return torch.cat([half.to(x.dtype) for half in made], dim=-1)  # in float32 the whole would be written out first


_turned_in_one_kernel = OneKernel(turned, "rotary embedding")
_turned_back_in_one_kernel = OneKernel(turned_back, "the gradient of rotary embedding")


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    if x.is_cuda and len(x):
        found = (_turned_in_one_kernel if sign < 0 else _turned_back_in_one_kernel)(x, cos, sin)
        if found is not None:
            return found
    out = x * cos
    (first, second), (low, high) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    half = sin[..., : first.shape[-1]]
    low.addcmul_(second, half, value=sign)
    high.addcmul_(first, half, value=-sign)
    return out


def swiglu(x: Tensor) -> Tensor:
    """SwiGLU (Shazeer, arXiv 2002.05202): [..., 2 * f], gate and up -> silu(gate) * up [..., f]; only `x` is saved for
    backward.

    On GPUs megatron-core's, which torch.compile makes one kernel of in each direction.
    """
    if x.is_cuda:
        from megatron.core.fusions.fused_bias_swiglu import SwiGLUFunction

        return SwiGLUFunction.apply(x.view(-1, x.shape[-1]), False, False).view(*x.shape[:-1], -1)
    return _SwiGLU.apply(x)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        made = torch.empty_like(x)
        of_gate, of_up = made.chunk(2, dim=-1)
        torch.mul(gradient, torch.nn.functional.silu(gate), out=of_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        return made


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of [..., h] by weight [h]; on GPUs torch's kernel, on CPUs torch has none of its own."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        of_normed = (
            gradient * normed
        )  # [..., h]: its sum over tokens is the weight's gradient, weighted over h the mean
        of_weight = of_normed.reshape(-1, x.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        mean = (of_normed @ weight).div_(x.shape[-1]).unsqueeze(-1)
        return normed.mul_(-mean).addcmul_(gradient, weight).mul_(scale), of_weight, None
