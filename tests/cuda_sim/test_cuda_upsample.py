"""upsample in CUDA C++ against float64: simulated, or on the GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable

import kernel_checks as kc
import pytest
import simulator
import torch
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.reference import Residual

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = kc.device_of("cuda")
RESIDUALS: tuple[Residual, ...] = ("none", "anchor", "bilinear")

# [N, C, H, W], image channels, scale: the networks' widths and scales in several tiles, more channels than a block,
# sides below a tile, one pixel.
CASES = (
    ((1, 58, 9, 18), 3, 2),
    ((1, 64, 9, 17), 3, 3),
    ((2, 52, 3, 5), 3, 4),
    ((1, 5, 3, 33), 1, 2),
    ((2, 7, 1, 1), 5, 4),
    ((1, 16, 4, 2), 5, 1),
)


def function(scale: int, residual: Residual) -> Callable[..., Tensor]:
    return lambda x, w, b, lr=None: ops.upsample(x, w, b, lr, scale=scale, residual=residual)


def inputs(
    shape: tuple[int, int, int, int],
    k: int,
    scale: int,
    residual: Residual,
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
    lr_layout: str = "nchw",
) -> list[Tensor]:
    n, c, h, w = shape
    out = k * scale * scale
    tensors = [kc.feature_map(shape, layout, dtype), kc.weight(out, c, 3, 3, dtype=dtype)]
    tensors.append(kc.weight(out, seed=1, gain=0.3, dtype=dtype))
    return tensors if residual == "none" else [*tensors, kc.feature_map((n, k, h, w), lr_layout, dtype, seed=1)]


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [kc.moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize(("shape", "k", "scale"), CASES, ids=str)
def test_twice_rule(shape, k: int, scale: int, residual: Residual, dtype: torch.dtype) -> None:
    kc.assert_twice_rule(function(scale, residual), inputs(shape, k, scale, residual, dtype), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
@pytest.mark.parametrize("lr_layout", ("nchw", "nhwc", "channel_slice"))
def test_layouts(layout: str, lr_layout: str, dtype: torch.dtype) -> None:
    tensors = inputs((2, 10, 5, 7), 3, 2, "bilinear", dtype, layout, lr_layout)
    kc.assert_twice_rule(function(2, "bilinear"), tensors, "cuda")


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_output_keeps_layout(layout: str) -> None:
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    with fastsr.backend("cuda"):
        y = function(2, "anchor")(*on_device(inputs((2, 24, 6, 11), 3, 2, "anchor", HALF, layout)))
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_empty_batch(residual: Residual) -> None:
    tensors = on_device(inputs((0, 8, 4, 5), 3, 2, residual))
    y, *gradients = kc.results(function(2, residual), tensors, "cuda")
    assert y.shape == (0, 3, 8, 10)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, tensors, strict=True))


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("scale", (2, 4))
def test_repeats_are_bit_equal_whatever_the_order_of_threads(scale: int, dtype: torch.dtype) -> None:
    tensors = on_device(inputs((2, 58, 18, 17), 3, scale, "bilinear", dtype))
    run = function(scale, "bilinear")
    first = kc.results(run, tensors, "cuda")
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, kc.results(run, tensors, "cuda"), strict=True))
    finally:
        simulator.seed = 0


def test_lr_without_gradient() -> None:
    x, w, b, lr = on_device(inputs((1, 8, 6, 6), 3, 2, "anchor"))
    with fastsr.backend("cuda"):
        function(2, "anchor")(x, w.requires_grad_(), b, lr).sum().backward()
    assert w.grad is not None and w.grad.isfinite().all() and lr.grad is None


def test_float32_weights_beside_a_half_map() -> None:
    """As under autocast: gradients of the weights are float32."""
    x, *w = on_device(inputs((1, 16, 6, 7), 3, 2, "none"))
    x, w = x.half().requires_grad_(), [t.requires_grad_() for t in w]
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF):
        y = function(2, "none")(x, *w)
        gradients = torch.autograd.grad(y.sum(), (x, *w))
    assert y.dtype == gradients[0].dtype == HALF
    assert all(g.dtype == FLOAT and g.isfinite().all() for g in gradients[1:])


@pytest.mark.parametrize("dtype", (HALF, BFLOAT), ids=str)
@pytest.mark.parametrize("residual", ("anchor", "bilinear"))
def test_an_image_of_float32_under_autocast(residual: Residual, dtype: torch.dtype) -> None:
    kc.assert_upsample_under_autocast(dtype, residual, "cuda")


@pytest.mark.parametrize("residual", (0, 2))
def test_opcheck(residual: int) -> None:
    x, w, b, *lr = on_device(inputs((2, 10, 3, 5), 3, 2, RESIDUALS[residual], HALF))
    arguments = [x, w, b, lr[0] if lr else None]
    grad = torch.randn(2, 3, 6, 10, device=DEVICE, dtype=HALF)
    with fastsr.backend("cuda"):
        leaves = [None if t is None else t.detach().requires_grad_() for t in arguments]
        torch.library.opcheck(torch.ops.fastsr.upsample.default, (*leaves, 2, residual))
        for lr_gradient in (True, False):
            torch.library.opcheck(
                torch.ops.fastsr.upsample_backward.default, (grad, *arguments, 2, residual, lr_gradient)
            )
