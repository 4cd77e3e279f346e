"""float32 maps multiplied in TF32 by the CUDA C++ kernels: within what rounding the operands allows, and at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import kernel_checks as kc
import pytest
import simulator
import torch
from tf32_checks import BEND, activate, bounds, convolve, just_below
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

import fastsr
from fastsr import ops

pytestmark = pytest.mark.usefixtures("cuda_kernels")

DEVICE = kc.device_of("cuda")
Case = tuple[Any, ...]  # the operator, the shapes of x and of the weights


def pointwise(x: Tensor, w: Tensor, b: Tensor, activation: str) -> Tensor:
    """Of x as two maps where it has many channels."""
    cut = x.shape[1] if x.shape[1] < 40 else 37
    maps = [x[:, :cut], x[:, cut:]][: 1 if cut == x.shape[1] else 2]
    return ops.pointwise(maps, w, b, activation=activation)


def conv3x3(x: Tensor, w: Tensor, b: Tensor, activation: str) -> Tensor:
    return ops.conv3x3_gelu(x, w, b, activation=activation)


def upsample(x: Tensor, w: Tensor, b: Tensor, activation: str) -> Tensor:
    """With the result in the order of the convolution's channels, to which the activation is applied here."""
    scale = 2 if w.shape[0] % 9 else 3
    return activate(pixel_unshuffle(ops.upsample(x, w, b, None, scale=scale), scale), activation)


def bsconv(x: Tensor, pw: Tensor, dw: Tensor, b: Tensor, activation: str) -> Tensor:
    return ops.bsconv(x, pw, dw, b, activation=activation)  # type: ignore[arg-type]


CASES: tuple[Case, ...] = (
    (pointwise, (1, 64, 9, 13), (64, 64, 1, 1)),
    (pointwise, (2, 33, 17, 16), (58, 33, 1, 1)),
    (pointwise, (1, 7, 1, 1), (100, 7, 1, 1)),
    (pointwise, (1, 130, 4, 2), (5, 130, 1, 1)),
    (pointwise, (2, 512, 3, 5), (64, 512, 1, 1)),
    (conv3x3, (1, 58, 9, 18), (58, 58, 3, 3)),
    (conv3x3, (2, 3, 17, 16), (12, 3, 3, 3)),
    (conv3x3, (1, 70, 5, 3), (65, 70, 3, 3)),
    (conv3x3, (1, 1, 1, 1), (16, 1, 3, 3)),
    (upsample, (1, 58, 9, 18), (12, 58, 3, 3)),
    (upsample, (2, 20, 5, 17), (27, 20, 3, 3)),
    (bsconv, (1, 64, 9, 18), (64, 64, 1, 1), (64, 1, 3, 3)),
    (bsconv, (2, 12, 5, 17), (58, 12, 1, 1), (58, 1, 3, 3)),
    (bsconv, (1, 33, 4, 3), (20, 33, 1, 1), (20, 1, 3, 3)),
    (bsconv, (1, 3, 1, 1), (7, 3, 1, 1), (7, 1, 3, 3)),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}-{case[2]}")
by_operator = pytest.mark.parametrize(
    "case", (CASES[1], CASES[6], CASES[9], CASES[12]), ids=lambda case: case[0].__name__
)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether the kernels may use it, in the simulator and on a GPU."""
    before = simulator.tf32
    with kc.float32_precision("tf32" if allowed else "ieee"):
        simulator.tf32 = allowed
        try:
            yield
        finally:
            simulator.tf32 = before


def run(case: Case, inputs: Sequence[Tensor], grad: Tensor, activation: str, allowed: bool = True) -> list[Tensor]:
    """y, dx, each dw, dbias."""
    leaves = [kc.moved(t, DEVICE).requires_grad_() for t in inputs]
    with fastsr.backend("cuda"), tf32(allowed):
        y = case[0](*leaves, activation)
        gradients = torch.autograd.grad(y, leaves, kc.moved(grad, DEVICE))
    return [t.detach().cpu() for t in (y, *gradients)]


def tensors(case: Case, layout: str = "nhwc", dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """x, weights, bias, and a gradient of the output."""
    _, x, *weights = case
    k = weights[0][0]
    inputs = [kc.feature_map(x, layout, dtype), *(kc.weight(*w, dtype=dtype) for w in weights)]
    return [*inputs, kc.weight(k, seed=1, dtype=dtype)], kc.feature_map((x[0], k, *x[2:]), layout, dtype, seed=5)


def errors_and_bounds(
    case: Case, inputs: Sequence[Tensor], grad: Tensor, activation: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of y, dx, each dw and dbias."""
    leaves = [t.detach().double().requires_grad_() for t in inputs]
    *operands, b = leaves
    g = grad.double()
    pre = convolve(*operands) + b.view(1, -1, 1, 1)
    y = activate(pre, activation)
    exact = [y.detach(), *torch.autograd.grad(y, leaves, g)]
    allowed = bounds([t.detach() for t in operands], pre.detach(), g, activation)
    for e, bound, found in zip(exact, allowed, run(case, inputs, grad, activation), strict=True):
        yield (found.double() - e).abs(), bound


@by_case
@pytest.mark.parametrize("activation", ("none", "gelu"))
def test_errors_are_what_rounding_the_operands_allows(case: Case, activation: str) -> None:
    inputs, grad = tensors(case)
    for i, (error, bound) in enumerate(errors_and_bounds(case, inputs, grad, activation)):
        assert (error <= bound).all(), f"result {i}: {(error / bound).max().item():.2f} of what is allowed"


@by_operator
@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(case: Case, layout: str) -> None:
    inputs, grad = tensors(case, layout)
    assert all((error <= bound).all() for error, bound in errors_and_bounds(case, inputs, grad, "gelu"))


def only_the_middle(shape: Sequence[int]) -> Tensor:
    """Depthwise filters that change nothing."""
    w = torch.zeros(*shape)
    w[:, :, shape[2] // 2, shape[3] // 2] = 1
    return w


@by_case
def test_every_operand_is_rounded_not_cut_off(case: Case) -> None:
    """These lose 2^-20 by rounding, and 2^-10 by being cut off, all in the same direction."""
    _, x, w, *depthwise = case
    inputs = [just_below(shape, seed) for seed, shape in enumerate((x, w, w[:1]))]
    inputs[2:2] = [only_the_middle(shape) for shape in depthwise]  # what is summed up is no longer such a number
    grad = just_below((x[0], w[0], *x[2:]), 3)
    for i, (error, bound) in enumerate(errors_and_bounds(case, inputs, grad, "none")):
        assert (error <= bound / 100).all(), f"result {i}: {(error / bound).max().item():.3f} of TF32's bound"


@by_case
def test_without_the_flag_float32_is_exact_and_with_it_the_bias_s_gradient_is(case: Case) -> None:
    inputs, grad = tensors(case)
    exact, rounded = (run(case, inputs, grad, "none", allowed) for allowed in (False, True))
    assert torch.equal(exact[-1], rounded[-1])
    for a, b, (_, bound) in zip(exact[:-1], rounded[:-1], errors_and_bounds(case, inputs, grad, "none"), strict=False):
        assert not torch.equal(a, b)
        difference = (a - b).abs().max() / bound.max()
        assert difference > 1e-3, "TF32 changes nothing"


@by_operator
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_half_precision_knows_no_tf32(case: Case, dtype: torch.dtype) -> None:
    inputs, grad = tensors(case, dtype=dtype)
    plain, allowed = (run(case, inputs, grad, "gelu", flag) for flag in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, allowed, strict=True))


@by_case
def test_repeats_are_bit_equal_whatever_the_order_of_threads(case: Case) -> None:
    inputs, grad = tensors(case)
    first = run(case, inputs, grad, "gelu")
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, run(case, inputs, grad, "gelu"), strict=True))
    finally:
        simulator.seed = 0


@pytest.mark.parametrize("value", (torch.nan, torch.inf), ids=str)
def test_what_is_not_finite_stays_in_its_pixel(value: float) -> None:
    (x, w, b), _ = tensors(CASES[0])
    x[0, 3, 1, 2] = value
    with fastsr.backend("cuda"), tf32(True):
        out = ops.pointwise([kc.moved(x, DEVICE)], kc.moved(w, DEVICE), kc.moved(b, DEVICE)).cpu()
    assert not out[0, :, 1, 2].isfinite().any() and int((~out.isfinite()).sum()) == w.shape[0]


@pytest.mark.parametrize(("shape", "d"), (((1, 64, 9, 18), 32), ((2, 20, 5, 3), 7), ((1, 58, 4, 17), 64)), ids=str)
@pytest.mark.parametrize("exact", (False, True))
def test_bsconv_s_stage(shape: tuple[int, ...], d: int, exact: bool) -> None:
    """With `exact` operands that rounding hardly changes."""
    c = shape[1]
    case: Case = (bsconv, shape, (c, c, 1, 1), (c, 1, 3, 3))
    (x, pw, dw, b), _ = tensors(case)
    dw_, db = kc.weight(d, c, 1, 1, seed=7), kc.weight(d, seed=8)
    if exact:
        x, pw, dw_ = just_below(x.shape, 0), just_below(pw.shape, 1), just_below(dw_.shape, 2)
    with fastsr.backend("cuda"), tf32(True), torch.no_grad():
        found = ops.bsconv_stage(*(kc.moved(t, DEVICE) for t in (x, dw_, db, pw, dw, b)))
    x, pw, dw, b, dw_, db = (t.double() for t in (x, pw, dw, b, dw_, db))
    for y, operands, rest in (
        (found[0], (x, dw_), db.view(1, -1, 1, 1)),
        (found[1], (x, pw, dw), b.view(1, -1, 1, 1) + x),
    ):
        pre = convolve(*operands) + rest
        error = (y.cpu() - activate(pre, "gelu")).abs()
        allowed = bounds(operands, pre, torch.ones_like(pre), "gelu")[0]
        assert (error <= allowed / (50 if exact else 1)).all() and error.max() > (0 if exact else allowed.max() / 100)


def test_the_gradient_of_a_shortcut() -> None:
    """It is that of the sum."""
    (*operands, b), grad = tensors(CASES[11])
    leaves = [kc.moved(t, DEVICE) for t in (*operands, b)]
    shortcut = kc.feature_map(grad.shape, "nhwc", seed=6).to(DEVICE).requires_grad_()
    with fastsr.backend("cuda"), tf32(True):
        y = ops.bsconv(*leaves, shortcut=shortcut, activation="gelu")
        (found,) = torch.autograd.grad(y, shortcut, kc.moved(grad, DEVICE))
    x, pw, dw, b, g, s = (t.detach().cpu().double() for t in (*operands, b, grad, shortcut))
    pre = (convolve(x, pw, dw) + b.view(1, -1, 1, 1) + s).requires_grad_()
    (exact,) = torch.autograd.grad(activate(pre, "gelu"), pre, g)
    of_pre = bounds((x, pw, dw), pre.detach(), g, "gelu")[0]
    assert ((found.cpu() - exact).abs() <= g.abs() * (BEND["gelu"] * of_pre + 2**-20)).all()
