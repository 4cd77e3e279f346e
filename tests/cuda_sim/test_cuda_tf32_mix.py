"""conv_mix and conv_mix_reduce in TF32: two products, one behind the other, and what their errors may add up to."""

from __future__ import annotations

from collections.abc import Sequence

import kernel_checks as kc
import pytest
import simulator
import torch
from test_cuda_conv_mix import inputs
from test_cuda_tf32 import DEVICE, tf32
from tf32_checks import BEND, PAIR, SLOPE, activate, convolve, gradients_of, just_below
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.reference import Activation

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT32 = 2**-20  # of other steps, relative
NAMES = ("y", "dx", "d_shortcut", "d_dw", "d_dw_bias", "d_pw", "d_pw_bias", "d_c5", "d_c5_bias")
HARDLY = 2**-18  # what a product of numbers loses that rounding hardly changes

CASES: tuple[tuple[tuple[int, int, int, int], int, Activation, bool], ...] = (
    ((1, 58, 9, 18), 58, "gelu", True),
    ((2, 50, 5, 7), 64, "leaky_relu", True),
    ((1, 58, 4, 17), 58, "gelu", False),
    ((2, 12, 9, 1), 7, "none", True),
    ((1, 3, 1, 1), 20, "gelu", True),
)
by_case = pytest.mark.parametrize(("shape", "k", "activation", "depthwise"), CASES, ids=str)


def run(tensors: Sequence[Tensor], grad: Tensor, activation: Activation, allowed: bool = True) -> list[Tensor]:
    """The output and all gradients; without a depthwise convolution its own are left out."""
    leaves = [kc.moved(t, DEVICE).requires_grad_() for t in tensors]
    dw = leaves[2:-4] or (None, None)
    with fastsr.backend("cuda"), tf32(allowed):
        y = ops.conv_mix(*leaves[:2], *dw, *leaves[-4:], activation=activation)
        gradients = torch.autograd.grad(y, leaves, kc.moved(grad, DEVICE))
    return [t.detach().cpu() for t in (y, *gradients)]


def mix(tensors: Sequence[Tensor], activation: str) -> Tensor:
    x, s, *dw = tensors[:-4]
    pw, pw_bias, c5, c5_bias = tensors[-4:]
    d = activate(convolve(x, dw[0]) + dw[1].view(1, -1, 1, 1), activation) + x if dw else x
    t = activate(convolve(d, pw) + pw_bias.view(1, -1, 1, 1), activation) + s
    return convolve(t, c5) + c5_bias.view(1, -1, 1, 1)


def exact(tensors: Sequence[Tensor], grad: Tensor, activation: str) -> list[Tensor]:
    leaves = [t.detach().double().requires_grad_() for t in tensors]
    y = mix(leaves, activation)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]


def product(a: Tensor, e_a: Tensor, b: Tensor, e_b: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Of a map and a 1x1 weight with their errors: the result and its error."""
    a_abs, b_abs = a.abs() + e_a, b.abs() + e_b
    return convolve(a, b), share * convolve(a_abs, b_abs) + convolve(a_abs, b_abs) - convolve(a.abs(), b.abs())


def mix_bounds(tensors: Sequence[Tensor], grad: Tensor, activation: str, **shares: float) -> dict[str, Tensor]:
    """Of the errors of what `run` gives, step by step (conv_mix_backward.cuh), in float64.

    Args:
        shares: of single products, by their result's name, what they lose of the product of absolute values.
    """
    x, s, *dw = (t.detach().double() for t in tensors[:-4])
    pw, pw_bias, c5, c5_bias = (t.detach().double() for t in tensors[-4:])
    g, zero = grad.double(), torch.zeros((), dtype=torch.float64)
    slope, bend = SLOPE[activation], BEND[activation]
    terms = max(x.shape[1], x.numel() // x.shape[1])
    sums = 2 * terms * 2**-24

    def share(name: str) -> float:
        return shares.get(name, PAIR) + sums

    def derivative(z: Tensor) -> Tensor:
        return torch.autograd.functional.vjp(lambda v: activate(v, activation), z, torch.ones_like(z))[1]

    def outer(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("nkhw,nchw->kc", a, b)[..., None, None]

    def weights_gradient(a: Tensor, e_a: Tensor, b: Tensor, e_b: Tensor, name: str) -> Tensor:
        larger = outer(a.abs() + e_a, b.abs() + e_b)
        return (1 + share(name)) * larger - outer(a.abs(), b.abs())

    q = convolve(x, dw[0]) + dw[1].view(1, -1, 1, 1) if dw else torch.zeros_like(x)
    e_q = FLOAT32 * (convolve(x.abs(), dw[0].abs()) + dw[1].abs().view(1, -1, 1, 1)) if dw else torch.zeros_like(x)
    d = activate(q, activation) + x
    e_d = slope * e_q + FLOAT32 * (1 + d.abs()) if dw else torch.zeros_like(x)
    p, e_p = product(d, e_d, pw, zero, share("p"))
    p, e_p = p + pw_bias.view(1, -1, 1, 1), e_p + FLOAT32 * pw_bias.abs().view(1, -1, 1, 1)
    t = activate(p, activation) + s
    e_t = slope * e_p + FLOAT32 * (t.abs() + (activation != "none"))
    y, e_y = product(t, e_t, c5, zero, share("y"))
    e_y = e_y + FLOAT32 * (y.abs() + c5_bias.abs().view(1, -1, 1, 1))
    dt, e_dt = product(g, zero, c5.transpose(0, 1), zero, share("dt"))
    dp = dt * derivative(p)
    e_of_slope = bend * e_p + (FLOAT32 if activation == "gelu" else 0)
    e_dp = slope * e_dt + (dt.abs() + e_dt) * e_of_slope
    dd, e_dd = product(dp, e_dp, pw.transpose(0, 1), zero, share("dd"))
    found = {"y": e_y, "d_shortcut": e_dt, "d_c5_bias": sums * g.abs().sum((0, 2, 3))}
    found |= {"dx": e_dd, "d_pw_bias": (e_dp + sums * dp.abs()).sum((0, 2, 3))}
    found |= {"d_pw": weights_gradient(dp, e_dp, d, e_d, "d_pw"), "d_c5": weights_gradient(g, zero, t, e_t, "d_c5")}
    if dw:
        dq = dd * derivative(q)
        e_dq = slope * e_dd + (dd.abs() + e_dd) * (bend * e_q + FLOAT32)
        of_dq = e_dq + (sums + FLOAT32) * dq.abs()
        dx, found["d_dw"] = gradients_of((x.abs(), dw[0].abs()), of_dq)
        found["dx"] = e_dd + dx + FLOAT32 * dd.abs()
        found["d_dw_bias"] = of_dq.sum((0, 2, 3))
    return found


def assert_within(
    tensors: Sequence[Tensor], grad: Tensor, activation: Activation, only: Sequence[str] = NAMES, **shares: float
) -> None:
    names = [name for name in NAMES if len(tensors) == 8 or not name.startswith("d_dw")]
    allowed = mix_bounds(tensors, grad, activation, **shares)
    results = (run(tensors, grad, activation), exact(tensors, grad, activation))
    for name, found, expected in zip(names, *results, strict=True):
        error = (found.double() - expected).abs()
        message = f"{name}: {(error / allowed[name]).nan_to_num(0).max().item():.2f} of what is allowed"
        assert name not in only or (error <= allowed[name]).all(), message


def cotangent(shape: tuple[int, int, int, int], k: int, layout: str = "nhwc") -> Tensor:
    return kc.feature_map((shape[0], k, *shape[2:]), layout, seed=5)


@by_case
def test_errors_are_what_rounding_the_operands_allows(shape, k: int, activation: Activation, depthwise: bool) -> None:
    assert_within(inputs(shape, k, depthwise=depthwise), cotangent(shape, k), activation)


@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(layout: str) -> None:
    shape = (2, 22, 5, 18)
    assert_within(inputs(shape, 14, layout=layout), cotangent(shape, 14, layout), "gelu")


def barely_above(shape: tuple[int, int, int, int], k: int) -> list[Tensor]:
    """x, shortcut and both weights of numbers that rounding hardly changes; no biases, no depthwise convolution."""
    c = shape[1]
    shapes = (shape, shape, (c, c, 1, 1), (k, c, 1, 1))
    x, s, pw, c5 = (just_below(size, seed) for seed, size in enumerate(shapes))
    return [x, s, pw, torch.zeros(c), c5, torch.zeros(k)]


def test_operands_of_the_first_product_are_rounded_not_cut_off() -> None:
    """Behind it a product with the identity, which loses no more than the rounding of its own operand."""
    shape = (2, 58, 5, 9)
    tensors, grad = barely_above(shape, 58), just_below(shape, 9)
    tensors[1], tensors[4] = torch.zeros(shape), torch.eye(58)[..., None, None]
    shares = dict.fromkeys(("p", "dt", "dd", "d_pw"), HARDLY)
    assert_within(tensors, grad, "none", ("y", "dx", "d_shortcut", "d_pw"), y=2**-11, **shares)


def test_operands_of_the_second_product_are_rounded_not_cut_off() -> None:
    """Before it nothing, so that it takes the shortcut."""
    shape = (2, 58, 5, 9)
    tensors, grad = barely_above(shape, 40), just_below((2, 40, 5, 9), 9)
    tensors[2] = torch.zeros(58, 58, 1, 1)
    shares = dict.fromkeys(("p", "y", "dt", "d_c5"), HARDLY)
    assert_within(tensors, grad, "none", ("y", "d_shortcut", "d_c5"), **shares)


@by_case
def test_without_the_flag_float32_is_as_it_was(shape, k: int, activation: Activation, depthwise: bool) -> None:
    """TF32 changes all that a product leads to, and the gradient of the last bias not at all."""
    tensors, grad = inputs(shape, k, depthwise=depthwise), cotangent(shape, k)
    plain, rounded = (run(tensors, grad, activation, allowed) for allowed in (False, True))
    assert torch.equal(plain[-1], rounded[-1])
    assert not any(torch.equal(a, b) for a, b in zip(plain[:-1], rounded[:-1], strict=True))
    tiny = dict.fromkeys(("p", "y", "dt", "dd", "d_pw", "d_c5"), 2 ** (-22))
    allowed = mix_bounds(tensors, grad, activation, **tiny)
    names = [name for name in NAMES if depthwise or not name.startswith("d_dw")]
    for name, found, expected in zip(names, plain, exact(tensors, grad, activation), strict=True):
        assert ((found.double() - expected).abs() <= allowed[name]).all(), name


def test_repeats_are_bit_equal_whatever_the_order_of_threads() -> None:
    shape = (2, 40, 9, 17)
    tensors, grad = inputs(shape, 58), cotangent(shape, 58)
    first = run(tensors, grad, "gelu")
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, run(tensors, grad, "gelu"), strict=True))
    finally:
        simulator.seed = 0


# ---- conv_mix_reduce


@pytest.mark.parametrize(("shape", "k", "inner"), (((1, 58, 9, 18), 58, 16), ((2, 20, 5, 3), 33, 5)), ids=str)
@pytest.mark.parametrize("rounds", (True, False))
def test_reduced(shape: tuple[int, int, int, int], k: int, inner: int, rounds: bool) -> None:
    """conv1 of y, which is bit by bit that of conv_mix; without `rounds` of weights that rounding hardly changes."""
    *mixer, b = inputs(shape, k)
    w1, b1 = kc.weight(inner, k, 1, 1, seed=20), kc.weight(inner, seed=21)
    if not rounds:
        mixer[4], mixer[6] = torch.zeros_like(mixer[4]), torch.eye(k, shape[1])[..., None, None]
        mixer[5], b = torch.zeros_like(mixer[5]), torch.zeros(k)
        w1 = just_below(w1.shape, 20)
    tensors = [kc.moved(t, DEVICE) for t in (*mixer, b, w1, b1)]
    with fastsr.backend("cuda"), tf32(True), torch.no_grad():
        y, reduced = ops.conv_mix_reduce(*tensors)
        assert reduced is not None and torch.equal(y, ops.conv_mix(*tensors[:-2]))
    y, reduced = y.cpu().double(), reduced.cpu().double()
    assert not reduced[:, inner:].any()
    share = PAIR if rounds else HARDLY  # y is then a number of TF32
    expected = convolve(y, w1.double()) + b1.double().view(1, -1, 1, 1)
    allowed = share * convolve(y.abs(), w1.double().abs()) + FLOAT32 * (1 + expected.abs())
    error = (reduced[:, :inner] - expected).abs()
    assert (error <= allowed).all() and (not rounds or error.max() > allowed.max() / 100)


def test_the_private_operator_knows_the_flag() -> None:
    """Behind the accuracy of GELU."""
    schema = torch.ops.fastsr._cuda_conv_mix_reduce.default._schema
    assert [a.name for a in schema.arguments[-2:]] == ["accuracy", "tf32"]
