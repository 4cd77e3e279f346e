"""The forms of GELU: their error over every float16 number, their derivative, what becomes of NaN and infinity."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import device_of
from torch import Tensor

import fastsr

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from fastsr.kernels import activation  # noqa: E402
from fastsr.kernels.activation import activate, derivative  # noqa: E402

DEVICE = device_of("triton")
BLOCK = 65536 if DEVICE == "cpu" else 1024

# The largest absolute error over all float16 numbers (the table in docs/gelu.md).
ERRORS = {"erf": 4.5e-7, "tail": 4e-7, "bump9": 3.5e-5, "bump6": 5.4e-4, "tanh": 2.6e-5}
APPROX_ERROR_PER_X = 3e-4  # tanh.approx is good to about 2^-11, and multiplied by x / 2
TINY = 3e-8
DERIVATIVE_ERROR = 2e-7 if DEVICE == "cpu" else 5e-7  # the GPU approximates exp2 and rsqrt


@triton.jit
def activate_all(x, y, d, count, FORM: tl.constexpr, BLOCK: tl.constexpr):
    o_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x + o_x, mask=o_x < count, other=0.0)
    tl.store(y + o_x, activate(b_x, FORM), mask=o_x < count)
    tl.store(d + o_x, derivative(b_x, FORM), mask=o_x < count)


def run(x: Tensor, form: str) -> tuple[Tensor, Tensor]:
    x = x.float().to(DEVICE)
    y, d = torch.empty_like(x), torch.empty_like(x)
    grid = (triton.cdiv(x.numel(), BLOCK),)
    activate_all[grid](x, y, d, x.numel(), FORM=activation.FORMS.index(form), BLOCK=BLOCK, enable_fp_fusion=True)
    return y.double().cpu(), d.double().cpu()


def every_float16() -> Tensor:
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    return numbers[numbers.isfinite()].double()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * torch.special.erfc(-x / math.sqrt(2))


def gelu_derivative(x: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(-x / math.sqrt(2)) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("form", ERRORS)
def test_error_over_every_float16(form: str) -> None:
    x = every_float16()
    y, d = run(x, form)
    error = (y - gelu(x)).abs()
    small = x.abs() < 32  # beyond, GELU is x or 0 and the result one rounding of it
    assert error[small].max() <= ERRORS[form]
    assert (error <= TINY)[~small].all()
    assert (d - gelu_derivative(x)).abs().max() <= DERIVATIVE_ERROR


def test_error_of_the_approximate_tanh() -> None:
    if DEVICE == "cpu":
        pytest.skip("needs an NVIDIA GPU: the interpreter has no inline assembly")
    x = every_float16()
    y, _ = run(x, "tanh_approx")
    assert ((y - gelu(x)).abs() <= APPROX_ERROR_PER_X * x.abs() + 1e-6).all()


@pytest.mark.parametrize("form", ["leaky", *ERRORS])
def test_nan_and_infinity(form: str) -> None:
    y, _ = run(torch.tensor([math.nan, math.inf, -math.inf]), form)
    assert y[0].isnan() and y[1] == math.inf
    assert y[2] == -math.inf if form == "leaky" else not y[2] > 0  # NaN in PyTorch, 0 where no 0 is multiplied


def test_leaky_relu() -> None:
    x = every_float16()
    y, d = run(x, "leaky")
    torch.testing.assert_close(y, torch.nn.functional.leaky_relu(x, 0.05), rtol=1e-6, atol=0)
    assert torch.equal(d.float(), torch.where(x > 0, 1.0, 0.05).float())


def test_the_accuracy_chooses_the_form() -> None:
    def name(dtype: torch.dtype, code: int = 1) -> str:
        return activation.FORMS[activation.form(code, torch.empty(1, dtype=dtype))]

    assert fastsr.current_gelu() == "default"
    chosen = [name(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    assert chosen == ["tail", "bump9", "bump6"]
    with fastsr.set_gelu("exact"):
        assert name(torch.float16) == "erf"
        with fastsr.set_gelu("fast"):
            assert name(torch.float32) == "tanh"
        assert fastsr.current_gelu() == "exact"
    assert fastsr.current_gelu() == "default"
    assert name(torch.float16, 0) == "none" and name(torch.float16, 2) == "leaky"
    with pytest.raises(fastsr.InputError, match="the accuracy of GELU is 'good'; accepted are default, exact, fast"):
        fastsr.set_gelu("good")
