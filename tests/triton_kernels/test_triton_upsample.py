"""The Triton upsample against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import (
    assert_repeatable,
    assert_twice_rule,
    assert_upsample_under_autocast,
    device_of,
    feature_map,
    moved,
    results,
    weight,
)
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.reference import Residual

DEVICE = device_of("triton")
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
RESIDUALS: tuple[Residual, ...] = ("none", "anchor", "bilinear")
# [N, C, H, W], image channels, scale, residual, dtype, layouts of x and lr: every scale, more than one tile, one pixel.
CASES = (
    ((1, 64, 3, 9), 3, 2, "anchor", FLOAT, "nhwc", "nchw"),
    ((1, 64, 2, 18), 3, 2, "anchor", HALF, "nhwc", "nhwc"),
    ((2, 58, 2, 5), 3, 3, "bilinear", FLOAT, "nchw", "nchw"),
    ((1, 58, 9, 3), 3, 4, "bilinear", BFLOAT, "channel_slice", "pixel_slice"),
    ((1, 7, 4, 3), 1, 2, "none", FLOAT, "pixel_slice", "nchw"),
    ((1, 24, 3, 4), 5, 4, "anchor", BFLOAT, "expanded", "channel_slice"),
    ((2, 5, 1, 1), 3, 3, "bilinear", HALF, "nhwc", "expanded"),
    ((1, 9, 2, 3), 2, 1, "bilinear", FLOAT, "nhwc", "nhwc"),
)


def function(scale: int, residual: Residual) -> Callable[..., Tensor]:
    def call(x: Tensor, w: Tensor, b: Tensor, lr: Tensor | None = None) -> Tensor:
        return ops.upsample(x, w, b, lr, scale=scale, residual=residual)

    return call


def case(
    shape: tuple[int, int, int, int],
    k: int,
    scale: int,
    residual: Residual = "none",
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
    lr_layout: str = "nchw",
) -> list[Tensor]:
    n, c, h, w = shape
    out = k * scale * scale
    inputs = [feature_map(shape, layout, dtype), weight(out, c, 3, 3, dtype=dtype), weight(out, seed=1, dtype=dtype)]
    return inputs if residual == "none" else [*inputs, feature_map((n, k, h, w), lr_layout, dtype, seed=1)]


@pytest.mark.parametrize(("shape", "k", "scale", "residual", "dtype", "layout", "lr_layout"), CASES)
def test_twice_rule(
    shape: tuple[int, int, int, int],
    k: int,
    scale: int,
    residual: Residual,
    dtype: torch.dtype,
    layout: str,
    lr_layout: str,
) -> None:
    inputs = case(shape, k, scale, residual, dtype, layout, lr_layout)
    assert_twice_rule(function(scale, residual), inputs, "triton")


@pytest.mark.parametrize("residual", RESIDUALS)
def test_an_empty_batch(residual: Residual) -> None:  # PyTorch's pixel_shuffle has no gradient for one
    inputs = [moved(t, DEVICE) for t in case((0, 8, 4, 5), 3, 2, residual)]
    y, *gradients = results(function(2, residual), inputs, "triton")
    assert y.shape == (0, 3, 8, 10)
    for gradient, value in zip(gradients, inputs, strict=True):
        assert gradient.shape == value.shape and not gradient.any()


def test_repeatable() -> None:
    assert_repeatable(function(2, "bilinear"), case((1, 8, 5, 6), 3, 2, "bilinear"), "triton")


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
@pytest.mark.parametrize("lr_layout", ("nchw", "nhwc"))
def test_output_and_gradients_keep_the_layouts(layout: str, lr_layout: str) -> None:
    formats = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
    inputs = [moved(t, DEVICE) for t in case((1, 8, 2, 3), 3, 2, "anchor", FLOAT, layout, lr_layout)]
    y, dx, *_, d_lr = results(function(2, "anchor"), inputs, "triton")
    assert y.is_contiguous(memory_format=formats[layout]) and dx.is_contiguous(memory_format=formats[layout])
    assert d_lr.is_contiguous(memory_format=formats[lr_layout])


def test_no_gradient_is_made_for_an_image_that_needs_none() -> None:
    x, w, b, lr = (moved(t, DEVICE) for t in case((1, 8, 2, 3), 3, 2, "anchor"))
    with fastsr.backend("triton"):
        ops.upsample(x, w.requires_grad_(), b, lr, scale=2, residual="anchor").sum().backward()
    assert w.grad is not None and lr.grad is None


@pytest.mark.parametrize("dtype", (HALF, BFLOAT), ids=str)
@pytest.mark.parametrize("residual", ("anchor", "bilinear"))
def test_an_image_of_float32_under_autocast(residual: Residual, dtype: torch.dtype) -> None:
    assert_upsample_under_autocast(dtype, residual, "triton")


@pytest.mark.parametrize("residual", RESIDUALS)
def test_opcheck(residual: Residual) -> None:
    layout = "nchw" if residual == "none" else "nhwc"
    inputs = [moved(t, DEVICE).requires_grad_() for t in case((1, 5, 3, 2), 3, 2, residual, FLOAT, layout)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    args = (*inputs, *([None] if residual == "none" else []), 2, RESIDUALS.index(residual))
    grad = moved(feature_map((1, 3, 6, 4), layout), DEVICE)
    with fastsr.backend("triton"):
        torch.library.opcheck(
            torch.ops.fastsr.upsample.default, args, test_utils=checks if residual == "anchor" else checks[2]
        )
        arguments = (grad, *(t.detach() if isinstance(t, Tensor) else t for t in args), True)
        torch.library.opcheck(torch.ops.fastsr.upsample_backward.default, arguments, test_utils=(checks[0], checks[2]))
