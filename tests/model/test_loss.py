"""The head: losses and the gradient made beside them, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies

from model import loss
from model.loss import token_losses, weighted_loss
from tests.pretrain import parallel_jobs


def head(tokens: int, vocabulary: int, width: int, dtype=torch.float32, seed: int = 0):
    """(hidden, weight, labels, factors), drawn."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=draw).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=draw), torch.rand(tokens, generator=draw)


def in_float64(hidden, weight, labels, factors, upstream: float = 1.0):
    """(losses, gradient of hidden, gradient of weight), all float64."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    losses = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    factors = 1.0 if factors is None else factors.double()
    return losses.detach(), *torch.autograd.grad((factors * losses).sum() * upstream, (hidden, weight))


@settings(max_examples=25, deadline=None)
@given(
    tokens=strategies.integers(1, 40),
    vocabulary=strategies.integers(2, 60),
    at_once=strategies.integers(1, 2000),
    weighted=strategies.booleans(),
    upstream=strategies.sampled_from([1.0, 0.25, -3.0]),
)
def test_the_gradient_of_one_pass_is_that_of_float64(tokens, vocabulary, at_once, weighted, upstream):
    hidden, weight, labels, factors = head(tokens, vocabulary, 8)
    factors = factors if weighted else None
    expected = in_float64(hidden, weight, labels, factors, upstream)
    total, losses = weighted_loss(hidden, weight, labels, factors, at_once)
    assert not losses.requires_grad
    found = (losses, *torch.autograd.grad(total * upstream, (hidden, weight)))
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=2e-5, rtol=2e-5)
    exact = (expected[0] * (1.0 if factors is None else factors.double())).sum()
    torch.testing.assert_close(total.double(), exact, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_the_softmax_goes_over_a_part_in_smaller_ones(monkeypatch, rows):
    hidden, weight, labels, factors = head(23, 50, 8)
    factors[5] = 0.0  # a target that counts for nothing
    expected = in_float64(hidden, weight, labels, factors)
    monkeypatch.setattr(loss, "SOFTMAX_AT_ONCE", rows * 50)
    total, losses = weighted_loss(hidden, weight, labels, factors, 10 * 50)
    for ours, exact in zip((losses, *torch.autograd.grad(total, (hidden, weight))), expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)


def test_what_is_certain_has_a_gradient_still():
    """A probability of 1 - 1e-4 is 1 in bfloat16: the gradient of its logit is made of its distance from 1."""
    hidden = torch.ones(1, 4, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 4, dtype=torch.bfloat16)
    weight[0] = 2.3125  # a logit of 9.25
    total, _ = weighted_loss(hidden, weight.requires_grad_(), torch.tensor([0]), None)
    (found,) = torch.autograd.grad(total, (weight,))
    assert found[0, 0].item() == pytest.approx(-9.6e-5, rel=0.02)


def test_large_logits_do_not_overflow():
    hidden, weight, labels, _ = head(6, 30, 8)
    hidden = (hidden.detach() * 100).requires_grad_()
    expected = in_float64(hidden, weight, labels, None)
    total, losses = weighted_loss(hidden, weight, labels)
    torch.testing.assert_close(losses.double(), expected[0], atol=1e-3, rtol=1e-5)
    for ours, exact in zip(torch.autograd.grad(total, (hidden, weight)), expected[1:]):
        torch.testing.assert_close(ours.double(), exact, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_a_gpu_compiles_is_the_softmax_of_float64(dtype, scale, weighted):
    draw = torch.Generator().manual_seed(3)
    logits = (scale * torch.randn(17, 60, generator=draw)).to(dtype)
    labels = logits.argmax(1)  # probabilities near 1 among them
    labels[::2] = torch.randint(60, (9,), generator=draw)
    factors = torch.rand(17, 1, generator=draw) if weighted else None
    if weighted:
        factors[4] = 0.0
    logs = torch.log_softmax(logits.double(), dim=1)
    exact = torch.exp(logs)
    of_label = logs.gather(1, labels[:, None])
    exact.scatter_(1, labels[:, None], torch.expm1(of_label))
    exact *= 1.0 if factors is None else factors.double()
    found = loss.softmax_gradient(logits, labels, factors)
    torch.testing.assert_close(found.double(), -of_label.squeeze(1), atol=1e-5, rtol=1e-5)
    bound = 2e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(logits.double(), exact, atol=1e-7, rtol=bound)
    assert factors is None or not logits[4].any()


def test_in_bfloat16_chunks_add_up_in_float32():
    """The weight's gradient is nearer to float64 than that of chunks whose gradients are added in bfloat16."""
    hidden, weight, labels, _ = head(512, 40, 16, torch.bfloat16)
    _, _, exact = in_float64(hidden, weight, labels, None)
    apart = {}
    for name, total in (
        ("one pass", weighted_loss(hidden, weight, labels, None, 4 * 40)[0]),
        ("chunk after chunk", token_losses(hidden, weight, labels, 4 * 40).sum()),
    ):
        (found,) = torch.autograd.grad(total, (weight,))
        apart[name] = (found.double() - exact).abs().mean()
    assert apart["one pass"] < 0.5 * apart["chunk after chunk"]


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_learns_nothing_gets_no_gradient(frozen):
    hidden, weight, labels, factors = head(9, 20, 8)
    expected = dict(zip(("hidden", "weight"), in_float64(hidden, weight, labels, factors)[1:]))
    {"hidden": hidden, "weight": weight}[frozen].requires_grad_(False)
    weighted_loss(hidden, weight, labels, factors)[0].backward()
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        assert (tensor.grad is None) == (name == frozen)
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad.double(), expected[name], atol=1e-5, rtol=1e-5)


def test_a_row_without_targets_has_a_gradient_of_zeros():
    hidden, weight, labels, factors = head(0, 20, 8)
    torch.full((20, 8), torch.nan)  # memory that may be given out next
    total, losses = weighted_loss(hidden, weight, labels, factors)
    total.backward()
    assert total.item() == 0 and not len(losses) and not weight.grad.any()


def test_measuring_makes_no_gradient():
    hidden, weight, labels, factors = head(9, 20, 8)
    with torch.no_grad():
        total, losses = weighted_loss(hidden, weight, labels, factors, 40)
    assert not total.requires_grad
    torch.testing.assert_close(losses.double(), in_float64(hidden, weight, labels, factors)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_shared_vocabulary_has_the_losses_and_gradients_of_a_whole_one(world, ranks):
    hidden, weight, labels, factors = head(23, 48, 8)
    expected = in_float64(hidden, weight, labels, factors)
    parts = world.run(
        parallel_jobs.head_of_a_rank,
        ranks,
        hidden=hidden.detach(),
        weight=weight.detach(),
        labels=labels,
        factors=factors,
        at_once=7 * 48 // ranks,
    )
    for losses, _, _ in parts:
        torch.testing.assert_close(losses.double(), expected[0], atol=1e-5, rtol=1e-5)
    of_hidden = sum(part[1].double() for part in parts)
    torch.testing.assert_close(of_hidden, expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([part[2] for part in parts]).double(), expected[2], atol=1e-5, rtol=1e-5)
