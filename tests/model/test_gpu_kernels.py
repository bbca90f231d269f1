"""Functions that a GPU's compiler makes one kernel of, compiled for this CPU, and sums inside of matrix products."""

from __future__ import annotations

import logging

import pytest
import torch
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache, run_and_get_code

from model import gpu_kernels
from model.fused import turned, turned_back
from model.gpu_kernels import OneKernel, WeightGradients, add_product, products_add, trouble
from model.loss import softmax_gradient
from pretrain.system.errors import UserError
from pretrain.system.logs import LOGGER

CPU = torch.device("cpu")


@pytest.fixture
def said():
    """Warnings of the run's log."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


def head_inputs(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(rows)
    logits = (8 * torch.randn(rows, 300, generator=draw)).to(dtype)
    factors = torch.rand(rows, 1, generator=draw)
    factors[1] = 0.0
    return logits, torch.randint(300, (rows,), generator=draw), factors


def kernels(code: list[str]) -> int:
    """Kernels that are called in the program of one compiled function."""
    (program,) = code
    calls = program[program.index("def call(") :]
    return sum(line.strip().startswith("cpp_fused") for line in calls.splitlines())


def by_one_kernel(kernel: OneKernel, *arguments):
    """What `kernel` gives: compiled to one kernel at its first call, and not again at the next one."""
    if kernel.compiled is None:
        found, code = run_and_get_code(kernel, *arguments)
        assert kernels(code) == 1
        return found
    with torch._dynamo.config.patch(error_on_recompile=True):
        return kernel(*arguments)


def test_the_compiled_softmax_is_one_kernel_that_writes_into_the_logits():
    kernel = OneKernel(softmax_gradient, "softmax")
    for rows in (7, 5):  # of which the second is not compiled again
        logits, labels, factors = head_inputs(rows, torch.bfloat16)
        plain = logits.clone()
        expected = softmax_gradient(plain, labels, factors)
        found = by_one_kernel(kernel, logits, labels, factors)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(logits, plain, atol=1e-7, rtol=2**-8)  # a step of bfloat16
        assert not logits[1].any(), "a factor of 0"


@pytest.mark.parametrize("function", [turned, turned_back])
def test_the_compiled_rotation_is_one_kernel(function):
    kernel, draw = OneKernel(function, "rotation"), torch.Generator().manual_seed(0)
    tables = torch.randn(2, 9, 1, 16, generator=draw).bfloat16()
    for count in (9, 6):
        cos, sin = tables[:, :count]
        x = torch.randn(count, 8, 16, generator=draw).bfloat16()[:, :4]  # a part of what a linear layer gave
        found = by_one_kernel(kernel, x, cos, sin)
        assert found.is_contiguous() and found.dtype == x.dtype
        torch.testing.assert_close(found, function(x, cos, sin), atol=0, rtol=2**-8)


def test_without_a_compiler_there_is_one_line_and_no_kernel(said):
    kernel = OneKernel(softmax_gradient, "the softmax of the head")
    with fresh_cache(), inductor.patch({"cpp.cxx": ("/nowhere/g++",)}):
        for rows in (7, 5):
            logits, labels, factors = head_inputs(rows, torch.float32)
            before = logits.clone()
            assert kernel(logits, labels, factors) is None
            assert torch.equal(logits, before)
    (line,) = said
    assert line.startswith("the softmax of the head is not compiled") and len(line.splitlines()) == 1
    assert "nowhere" in line or "Compiler" in line, line


def test_what_the_compiler_cannot_take_whole_is_not_run_in_pieces(said):
    def two(x):
        return x + 1 if x.sum().item() > 0 else x - 1

    assert OneKernel(two, "a choice")(torch.ones(3)) is None and len(said) == 1


def test_other_ranks_say_nothing(said, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    gpu_kernels._say("a line")
    assert not said


def test_a_deterministic_run_does_without_sums_whose_order_depends_on_sizes(said):
    torch.use_deterministic_algorithms(True)
    try:
        assert OneKernel(softmax_gradient, "softmax", sums=True)(*head_inputs(3, torch.float32)) is None
    finally:
        torch.use_deterministic_algorithms(False)
    assert not said


def test_too_little_memory_is_no_failure_of_the_compiler():
    kernel = OneKernel(softmax_gradient, "softmax")

    def too_much(*_):
        raise torch.OutOfMemoryError("out of memory")

    kernel.compiled = too_much
    with pytest.raises(torch.OutOfMemoryError):
        kernel(*head_inputs(3, torch.float32))
    assert not kernel.failed


def test_an_operation_that_a_device_does_not_have_is_left_out(said):
    """A CPU has no product of bfloat16 that adds to float32."""
    why = trouble(gpu_kernels._in_product, CPU)
    assert why.startswith("NotImplementedError: Could not run 'aten::addmm")
    products_add.cache_clear()
    assert [products_add(CPU) for _ in range(2)] == [False, False]
    assert len(said) == 1 and why in said[0]


@pytest.mark.parametrize(
    "add, right",
    [
        (lambda total, a, b: total.add_(a.float() @ b.float()), True),
        (lambda total, a, b: total.copy_(a.float() @ b.float()), False),
        (lambda total, a, b: total.copy_((total + a.float() @ b.float()).bfloat16()), False),
        (lambda total, a, b: total.add_(a @ b), False),
        (lambda total, a, b: None, False),
    ],
    ids=["right", "overwrites", "rounds the sum", "rounds the product", "does nothing"],
)
def test_a_product_that_adds_wrongly_is_found_out(add, right):
    assert trouble(add, CPU) == ("" if right else "the sum of a small product is wrong")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_of_products_of_a_cpu(dtype):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((4, 6), (6, 5)))
    total = torch.full((4, 5), torch.nan)
    add_product(total, a, b, first=True)
    add_product(total, a, b)
    torch.testing.assert_close(total.double(), 2 * (a.double() @ b.double()), atol=1e-5, rtol=2**-7)


def test_a_branch_without_tokens_adds_nothing():
    total = torch.ones(4, 3)
    WeightGradients.wgrad_gemm_accum_fp32(torch.zeros(0, 3), torch.zeros(0, 4), total)
    assert torch.equal(total, torch.ones(4, 3))


@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_of_the_step_before_is_not_read(tokens, dtype):
    draw = torch.Generator().manual_seed(0)
    given, gradient = (torch.randn(tokens, width, generator=draw).bfloat16() for width in (3, 4))
    total = torch.full((4, 3), torch.nan, dtype=dtype)
    total.overwritten = True
    WeightGradients.wgrad_gemm_accum_fp32(given, gradient, total)
    assert torch.equal(total, (gradient.t() @ given).to(dtype))
    WeightGradients.wgrad_gemm_accum_fp32(given, gradient, total)
    torch.testing.assert_close(total.double(), 2 * (gradient.t().double() @ given.double()), atol=1e-2, rtol=2**-6)


def test_a_run_on_a_cpu_says_nothing_of_it():
    assert gpu_kernels.in_use(CPU) == "" and not gpu_kernels.weight_gradients_add(CPU, torch.float32)


def test_a_compiler_that_is_wrong_is_found_at_the_first_call(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: lambda *given: function(*given) + 1)
    with pytest.raises(UserError, match="the softmax as torch .* compiles it is wrong"):
        OneKernel(softmax_gradient, "the softmax")(*head_inputs(9, torch.bfloat16))
    cos, sin, x = torch.randn(3, 9, 4, 16)
    with pytest.raises(UserError, match="rotation as torch"):
        OneKernel(turned, "rotation")(x, cos, sin)
