"""The Triton conv3x3_gelu against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import assert_repeatable, assert_twice_rule, device_of, feature_map, moved, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.reference import Activation

DEVICE = device_of("triton")
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
# [N, C, H, W], K, dtype, activation, layout: the networks' widths, more than one tile and block, one pixel, slices.
CASES = (
    ((2, 58, 5, 7), 58, FLOAT, "gelu", "nhwc"),
    ((1, 58, 9, 17), 58, HALF, "gelu", "nhwc"),
    ((1, 52, 5, 18), 52, BFLOAT, "leaky_relu", "channel_slice"),
    ((1, 3, 7, 6), 58, HALF, "none", "nchw"),
    ((1, 3, 6, 5), 20, FLOAT, "leaky_relu", "pixel_slice"),
    ((1, 70, 2, 3), 33, FLOAT, "gelu", "nchw"),
    ((1, 24, 3, 4), 70, BFLOAT, "none", "expanded"),
    ((2, 8, 1, 1), 8, HALF, "gelu", "channel_slice"),
    ((1, 1, 1, 19), 1, FLOAT, "gelu", "nhwc"),
)


def inputs(shape: tuple[int, ...], k: int, dtype: torch.dtype = FLOAT, layout: str = "nhwc") -> list[Tensor]:
    n, c, h, w = shape
    return [
        feature_map(shape, layout, dtype),
        weight(k, c, 3, 3, dtype=dtype),
        weight(k, seed=1, dtype=dtype),
        feature_map((n, k, h, w), layout, dtype, seed=1),
    ]


def function(activation: Activation, shortcut: bool = True) -> Callable[..., Tensor]:
    def run(x: Tensor, w: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return ops.conv3x3_gelu(x, w, b, activation=activation, shortcut=s if shortcut else None)

    return run


@pytest.mark.parametrize(("shape", "k", "dtype", "activation", "layout"), CASES)
def test_twice_rule(shape: tuple[int, ...], k: int, dtype: torch.dtype, activation: Activation, layout: str) -> None:
    assert_twice_rule(function(activation, shortcut=k % 4 != 0), inputs(shape, k, dtype, layout), "triton")


def test_repeatable() -> None:
    assert_repeatable(function("gelu"), inputs((1, 8, 5, 6), 12), "triton")


@pytest.mark.parametrize("shape", ((0, 8, 4, 4), (2, 8, 0, 4)))
def test_empty(shape: tuple[int, ...]) -> None:
    x, w, b, s = (moved(t, DEVICE).requires_grad_() for t in inputs(shape, 12))
    with fastsr.backend("triton"):
        y = function("gelu")(x, w, b, s)
        gradients = torch.autograd.grad(y, (x, w, b, s), torch.ones_like(y))
    assert y.shape == s.shape
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients[:3], (x, w, b), strict=True))


def test_input_without_gradient() -> None:
    x, w, b, _ = (moved(t, DEVICE) for t in inputs((1, 3, 4, 5), 8))
    w.requires_grad_()
    with fastsr.backend("triton"):
        ops.conv3x3_gelu(x, w, b).sum().backward()
    assert w.grad is not None and x.grad is None


def test_nan_reaches_what_depends_on_it_only() -> None:
    x, w, b, s = inputs((1, 20, 9, 7), 8)
    x[0, 19, 4, 3] = torch.nan
    with fastsr.backend("triton"):
        y = function("gelu")(*(moved(t, DEVICE) for t in (x, w, b, s))).cpu()
    near = torch.zeros(9, 7, dtype=torch.bool)
    near[3:6, 2:5] = True
    assert torch.equal(y.isnan(), near.expand(1, 8, 9, 7))


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_opcheck(layout: str) -> None:
    x, w, b, s = (moved(t, DEVICE) for t in inputs((1, 4, 3, 3), 6, layout=layout))
    with fastsr.backend("triton"):
        leaves = [t.detach().requires_grad_() for t in (x, w, b, s)]
        checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(
            torch.ops.fastsr.conv3x3_gelu.default, (*leaves, 1), test_utils=checks if layout == "nhwc" else checks[2]
        )
        for needs_dx in (False, True):
            arguments = (torch.randn_like(s), x, w, b, 1, needs_dx)
            torch.library.opcheck(
                torch.ops.fastsr.conv3x3_gelu_backward.default, arguments, test_utils=("test_schema", "test_faketensor")
            )


def test_autocast_keeps_the_dtype_of_the_input() -> None:
    x, w, b, _ = inputs((1, 8, 4, 5), 8)  # float32 parameters, as under autocast
    half = moved(x, DEVICE).half().requires_grad_()
    w, b = (moved(t, DEVICE).requires_grad_() for t in (w, b))
    with fastsr.backend("triton"), torch.autocast(DEVICE, dtype=HALF):
        y = ops.conv3x3_gelu(half, w, b)
        y.sum().backward()
    assert y.dtype == HALF and half.grad is not None and half.grad.dtype == HALF
    assert w.grad is not None and w.grad.dtype == FLOAT
    with fastsr.backend("reference"):
        want = ops.conv3x3_gelu(half.double(), w.half().double(), b.double())
    eps = torch.finfo(HALF).eps
    torch.testing.assert_close(y.double(), want, rtol=eps, atol=eps)
