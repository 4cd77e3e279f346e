"""float32 maps multiplied in TF32 by the CUDA C++ kernels: within what rounding the operands allows, and at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import kernel_checks as kc
import pytest
import simulator
import torch
from tf32_checks import activate, bounds, just_below
from torch import Tensor
from torch.nn.functional import conv2d, pixel_unshuffle

import fastsr
from fastsr import ops

pytestmark = pytest.mark.usefixtures("cuda_kernels")

DEVICE = kc.device_of("cuda")
Case = tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], int]  # operator, x, weight, padding


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


CASES: tuple[Case, ...] = (
    (pointwise, (1, 64, 9, 13), (64, 64, 1, 1), 0),
    (pointwise, (2, 33, 17, 16), (58, 33, 1, 1), 0),
    (pointwise, (1, 7, 1, 1), (100, 7, 1, 1), 0),
    (pointwise, (1, 130, 4, 2), (5, 130, 1, 1), 0),
    (pointwise, (2, 512, 3, 5), (64, 512, 1, 1), 0),
    (conv3x3, (1, 58, 9, 18), (58, 58, 3, 3), 1),
    (conv3x3, (2, 3, 17, 16), (12, 3, 3, 3), 1),
    (conv3x3, (1, 70, 5, 3), (65, 70, 3, 3), 1),
    (conv3x3, (1, 1, 1, 1), (16, 1, 3, 3), 1),
    (upsample, (1, 58, 9, 18), (12, 58, 3, 3), 1),
    (upsample, (2, 20, 5, 17), (27, 20, 3, 3), 1),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}-{case[2]}")


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
    """y, dx, dw, dbias."""
    x, w, b = (kc.moved(t, DEVICE).requires_grad_() for t in inputs)
    with fastsr.backend("cuda"), tf32(allowed):
        y = case[0](x, w, b, activation)
        gradients = torch.autograd.grad(y, (x, w, b), kc.moved(grad, DEVICE))
    return [t.detach().cpu() for t in (y, *gradients)]


def tensors(case: Case, layout: str = "nhwc", dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """x, weight, bias, and a gradient of the output."""
    _, x, w, _ = case
    inputs = [kc.feature_map(x, layout, dtype), kc.weight(*w, dtype=dtype), kc.weight(w[0], seed=1, dtype=dtype)]
    return inputs, kc.feature_map((x[0], w[0], *x[2:]), layout, dtype, seed=5)


def errors_and_bounds(
    case: Case, inputs: Sequence[Tensor], grad: Tensor, activation: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of y, dx, dw and dbias."""

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return conv2d(x, w, padding=case[3])

    x, w, b, g = (t.detach().double() for t in (*inputs, grad))
    pre = convolve(x, w) + b.view(1, -1, 1, 1)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    y = activate(convolve(x, w) + b.view(1, -1, 1, 1), activation)
    exact = [y.detach(), *torch.autograd.grad(y, leaves, g)]
    allowed = bounds(convolve, x.detach(), w.detach(), pre.detach(), g, activation)
    for e, bound, found in zip(exact, allowed, run(case, inputs, grad, activation), strict=True):
        yield (found.double() - e).abs(), bound


@by_case
@pytest.mark.parametrize("activation", ("none", "gelu"))
def test_errors_are_what_rounding_the_operands_allows(case: Case, activation: str) -> None:
    inputs, grad = tensors(case)
    for i, (error, bound) in enumerate(errors_and_bounds(case, inputs, grad, activation)):
        assert (error <= bound).all(), f"result {i}: {(error / bound).max().item():.2f} of what is allowed"


@pytest.mark.parametrize("case", CASES[1::5], ids=lambda case: case[0].__name__)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(case: Case, layout: str) -> None:
    inputs, grad = tensors(case, layout)
    assert all((error <= bound).all() for error, bound in errors_and_bounds(case, inputs, grad, "gelu"))


@by_case
def test_every_operand_is_rounded_not_cut_off(case: Case) -> None:
    """These lose 2^-20 by rounding, and 2^-10 by being cut off, all in the same direction."""
    inputs = [just_below(shape, seed) for seed, shape in enumerate((case[1], case[2], case[2][:1]))]
    grad = just_below((case[1][0], case[2][0], *case[1][2:]), 3)
    for i, (error, bound) in enumerate(errors_and_bounds(case, inputs, grad, "none")):
        assert (error <= bound / 100).all(), f"result {i}: {(error / bound).max().item():.3f} of TF32's bound"


@by_case
def test_without_the_flag_float32_is_exact_and_with_it_the_bias_s_gradient_is(case: Case) -> None:
    inputs, grad = tensors(case)
    exact, rounded = (run(case, inputs, grad, "none", allowed) for allowed in (False, True))
    assert torch.equal(exact[3], rounded[3])
    for a, b, (_, bound) in zip(exact[:3], rounded[:3], errors_and_bounds(case, inputs, grad, "none"), strict=False):
        assert not torch.equal(a, b)
        difference = (a - b).abs().max() / bound.max()
        assert difference > 1e-3, "TF32 changes nothing"


@pytest.mark.parametrize("case", CASES[1::5], ids=lambda case: case[0].__name__)
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
