"""The Triton pointwise against float64, and through the frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, device_of, feature_map, moved, weight
from torch import Tensor

import fastsr
from fastsr import ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = device_of("triton")
# channels of the inputs, output channels, batch, height, width, activation
CASES = (
    ((32, 32, 32, 32), 64, 1, 9, 13, "none"),
    ((64,), 64, 2, 5, 7, "gelu"),
    ((58,), 46, 1, 7, 11, "leaky_relu"),
    ((7, 1, 33), 100, 1, 1, 1, "gelu"),
    ((130, 3), 5, 1, 4, 2, "none"),
)


def function(activation: str) -> Callable[..., Tensor]:
    return lambda w, b, *maps: ops.pointwise(maps, w, b, activation=activation)


def case(
    channels: Sequence[int], out: int, n: int, h: int, w: int, layout: str = "nhwc", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    maps = [feature_map((n, c, h, w), layout, dtype, seed=i) for i, c in enumerate(channels)]
    return [weight(out, sum(channels), 1, 1, dtype=dtype), weight(out, seed=1, dtype=dtype), *maps]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_twice_rule(shape: tuple, dtype: torch.dtype) -> None:
    *sizes, activation = shape
    assert_twice_rule(function(activation), case(*sizes, dtype=dtype), "triton")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    assert_twice_rule(function("gelu"), case((20, 7), 24, 2, 3, 11, layout), "triton")


@pytest.mark.parametrize("accuracy", ("exact", "fast"))
def test_accuracies(accuracy: str) -> None:
    """`exact` obeys the 2x rule in float32; `fast` in half precision, where its error is less than rounding."""
    dtype = torch.float32 if accuracy == "exact" else torch.bfloat16
    with fastsr.set_gelu(accuracy):
        assert_twice_rule(function("gelu"), case((16,), 16, 1, 5, 7, dtype=dtype), "triton")


def test_repeatable() -> None:
    assert_repeatable(function("gelu"), case((32, 16), 40, 2, 9, 15), "triton")


def test_outputs_and_gradients_keep_the_layouts() -> None:
    w, b, x, y = (moved(t, DEVICE) for t in case((8, 4), 6, 2, 5, 7, "nchw"))
    x = x.requires_grad_()
    y = y.contiguous(memory_format=torch.channels_last).requires_grad_()
    with fastsr.backend("triton"):
        out = ops.pointwise((x, y), w, b)
        out.sum().backward()
    assert out.is_contiguous() and x.grad is not None and x.grad.is_contiguous()
    assert y.grad is not None and y.grad.is_contiguous(memory_format=torch.channels_last)


def test_empty() -> None:
    w, b, x = (moved(t, DEVICE).requires_grad_() for t in case((5,), 3, 0, 4, 4))
    with fastsr.backend("triton"):
        ops.pointwise((x,), w, b, activation="gelu").sum().backward()
    assert w.grad is not None and not w.grad.any() and b.grad is not None and not b.grad.any()


def test_nan_stays_in_its_pixel() -> None:
    w, b, x = (moved(t, DEVICE) for t in case((16,), 16, 1, 4, 9))
    x[0, 3, 1, 2] = torch.nan
    with fastsr.backend("triton"):
        out = ops.pointwise((x,), w, b, activation="gelu")
    bad = torch.zeros(1, 16, 4, 9, dtype=torch.bool)
    bad[:, :, 1, 2] = True
    assert torch.equal(out.isnan().cpu(), bad)


def test_opcheck() -> None:
    w, b, x, y = (moved(t, DEVICE).requires_grad_() for t in case((3, 5), 4, 2, 3, 5))
    grad = moved(feature_map((2, 4, 3, 5), "nhwc"), DEVICE)
    backward = (grad, [x.detach(), y.detach()], w.detach(), b.detach(), None, 1)
    with fastsr.backend("triton"):
        torch.library.opcheck(torch.ops.fastsr.pointwise.default, ([x, y], w, b, None, 1))
        torch.library.opcheck(
            torch.ops.fastsr.pointwise_backward.default, backward, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    w, b, x = (moved(t, DEVICE).requires_grad_() for t in case((16,), 24, 1, 5, 7))
    half = x.detach().to(dtype).requires_grad_()
    with fastsr.backend("triton"), torch.autocast(DEVICE, dtype=dtype):
        y = ops.pointwise((half,), w, b, activation="gelu")
        y.sum().backward()
    assert y.dtype == dtype and half.grad is not None and half.grad.dtype == dtype
    assert w.grad is not None and w.grad.dtype == torch.float32
    want = torch.nn.functional.gelu(torch.nn.functional.conv2d(half.double(), w.double(), b.double()))
    torch.testing.assert_close(y.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
