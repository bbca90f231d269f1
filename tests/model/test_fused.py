"""Fused norm, rotation and activation against plain operations in float64: values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies

from model.fused import rms_norm, rotate, swiglu, turned, turned_back
from model.hf.rope_uni_x import Rope
from model.routing import rotary_tables


def compare(fused, plain, *inputs, bound: float = 1e-5) -> None:
    """Outputs and gradients of both; `plain` computes in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found, expected = fused(*inputs), plain(*exact)
    torch.testing.assert_close(found.double(), expected, atol=bound, rtol=bound)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(found, inputs, upstream.to(found.dtype))
    for one, other in zip(ours, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
        torch.testing.assert_close(one.double(), other, atol=10 * bound, rtol=10 * bound)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


@settings(max_examples=15, deadline=None)
@given(tokens=strategies.integers(0, 9), half=strategies.integers(1, 8))
def test_swiglu_is_the_silu_of_one_half_times_the_other(tokens, half):
    compare(swiglu, lambda x: torch.nn.functional.silu(x[..., :half]) * x[..., half:], draw(tokens, 1, 2 * half))


@settings(max_examples=15, deadline=None)
@given(tokens=strategies.integers(0, 9), heads=strategies.integers(1, 4), half=strategies.integers(1, 8))
def test_rotation_turns_pairs_by_their_angle(tokens, heads, half):
    cos, sin, _ = rotary_tables(torch.arange(tokens) * 7, 2 * half, Rope(1e4), torch.float32)

    def plain(x):
        first, second = x.chunk(2, dim=-1)
        return x * cos.double() + torch.cat((-second, first), dim=-1) * sin.double()

    compare(lambda x: rotate(x, cos, sin), plain, draw(tokens, heads, 2 * half))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_gpu_compiles_turns_by_the_same_angles_and_back(dtype):
    cos, sin, _ = rotary_tables(torch.arange(9) * 7, 16, Rope(1e4), dtype)
    x = draw(9, 3, 16).detach().to(dtype)
    first, second = x.double().chunk(2, dim=-1)
    for function, sign in ((turned, 1), (turned_back, -1)):
        swapped = sign * torch.cat((-second, first), dim=-1)
        exact = x.double() * cos.double() + swapped * sin.double()
        bound = 1e-6 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(function(x, cos, sin).double(), exact, atol=1e-6, rtol=bound)


@pytest.mark.parametrize("shape", [(5, 1, 16), (7, 3, 8), (1, 4), (0, 1, 8)])
def test_the_norm_is_that_of_torch(shape):
    weight = draw(shape[-1])
    compare(
        lambda x, w: rms_norm(x, w, 1e-6),
        lambda x, w: torch.nn.functional.rms_norm(x, w.shape, w, 1e-6),
        draw(*shape),
        weight,
    )


def test_the_norm_of_nothing_but_zeros_is_zero():
    x = torch.zeros(3, 8, requires_grad=True)
    out = rms_norm(x, torch.ones(8), 1e-6)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(x)) and torch.isfinite(x.grad).all()


def test_the_activation_keeps_its_input_alone():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda each: each
    ):
        swiglu(draw(6, 1, 32))
    assert kept == [(6, 1, 32)]
