"""The Triton conv_mix against float64."""

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
# [N, C, H, W], K, dtype, activation, depthwise, layout: the network's widths, more than one tile, one pixel, slices.
CASES = (
    ((2, 58, 3, 9), 58, FLOAT, "gelu", True, "nhwc"),
    ((1, 58, 5, 17), 58, HALF, "gelu", True, "nhwc"),
    ((1, 50, 4, 7), 50, BFLOAT, "leaky_relu", True, "channel_slice"),
    ((1, 58, 3, 9), 58, BFLOAT, "gelu", False, "nchw"),
    ((1, 12, 5, 4), 7, FLOAT, "leaky_relu", False, "pixel_slice"),
    ((1, 70, 2, 3), 130, FLOAT, "gelu", True, "nchw"),
    ((2, 20, 1, 1), 33, HALF, "gelu", True, "expanded"),
    ((1, 16, 1, 19), 16, HALF, "gelu", False, "channel_slice"),
)


def inputs(
    shape: tuple[int, ...], k: int, dtype: torch.dtype = FLOAT, layout: str = "nhwc", depthwise: bool = True
) -> list[Tensor]:
    c = shape[1]
    parameters = [weight(c, c, 1, 1, dtype=dtype), weight(c, seed=2, dtype=dtype)]
    parameters += [weight(k, c, 1, 1, seed=3, dtype=dtype), weight(k, seed=4, dtype=dtype)]
    if depthwise:
        parameters = [weight(c, 1, 3, 3, seed=5, dtype=dtype), weight(c, seed=6, dtype=dtype), *parameters]
    return [feature_map(shape, layout, dtype), feature_map(shape, layout, dtype, seed=1), *parameters]


def function(activation: Activation = "gelu") -> Callable[..., Tensor]:
    def run(x: Tensor, shortcut: Tensor, *parameters: Tensor) -> Tensor:
        dw = parameters[:-4] or (None, None)
        return ops.conv_mix(x, shortcut, *dw, *parameters[-4:], activation=activation)

    return run


@pytest.mark.parametrize(("shape", "k", "dtype", "activation", "depthwise", "layout"), CASES)
def test_twice_rule(
    shape: tuple[int, ...], k: int, dtype: torch.dtype, activation: Activation, depthwise: bool, layout: str
) -> None:
    assert_twice_rule(function(activation), inputs(shape, k, dtype, layout, depthwise), "triton")


@pytest.mark.parametrize("depthwise", (False, True))
def test_repeatable(depthwise: bool) -> None:
    assert_repeatable(function(), inputs((1, 12, 5, 9), 8, depthwise=depthwise), "triton")


@pytest.mark.parametrize("depthwise", (False, True))
def test_empty(depthwise: bool) -> None:
    leaves = [moved(t, DEVICE).requires_grad_() for t in inputs((0, 8, 4, 4), 12, depthwise=depthwise)]
    with fastsr.backend("triton"):
        y = function()(*leaves)
        gradients = torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert y.shape == (0, 12, 4, 4)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, leaves, strict=True))


def test_too_many_channels_are_named() -> None:
    tensors = [moved(t, DEVICE) for t in inputs((1, 129, 1, 1), 4)]
    with (
        fastsr.backend("triton"),
        pytest.raises(fastsr.BackendError, match="129 channels exceed 128"),
    ):
        function()(*tensors)


def test_nan_reaches_what_depends_on_it_only() -> None:
    tensors = inputs((1, 20, 7, 9), 8)
    tensors[0][0, 19, 3, 4] = torch.nan
    with fastsr.backend("triton"):
        y = function()(*(moved(t, DEVICE) for t in tensors)).cpu()
    near = torch.zeros(7, 9, dtype=torch.bool)
    near[2:5, 3:6] = True
    assert torch.equal(y.isnan(), near.expand(1, 8, 7, 9))


@pytest.mark.parametrize("depthwise", (False, True))
@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_opcheck(layout: str, depthwise: bool) -> None:
    tensors = [moved(t, DEVICE) for t in inputs((1, 4, 3, 3), 6, layout=layout, depthwise=depthwise)]
    tensors[2:2] = [] if depthwise else [None, None]
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    grad = moved(feature_map((1, 6, 3, 3), layout), DEVICE)
    with fastsr.backend("triton"):
        torch.library.opcheck(
            torch.ops.fastsr.conv_mix.default, (*leaves, 1), test_utils=checks if layout == "nhwc" else checks[2]
        )
        arguments = (grad, *tensors, 1)
        torch.library.opcheck(torch.ops.fastsr.conv_mix_backward.default, arguments, test_utils=(checks[0], checks[2]))
