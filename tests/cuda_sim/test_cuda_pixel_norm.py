"""pixel_norm in CUDA C++ against float64: simulated, or on the GPU if there is one."""

from __future__ import annotations

import pytest
import simulator
import torch
from kernel_checks import LAYOUTS, assert_twice_rule, device_of, feature_map, moved, results, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import BackendError

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = device_of("cuda")
# The networks' channels, several parts of an image, lanes of every kind, sides below a step.
SHAPES = ((2, 64, 9, 7), (1, 64, 40, 50), (1, 2, 1, 1), (3, 58, 5, 14), (1, 3, 130, 1), (1, 130, 3, 5), (1, 256, 2, 9))


def parameters(channels: int, dtype: torch.dtype = FLOAT) -> tuple[Tensor, Tensor]:
    return weight(channels, seed=1, dtype=dtype), weight(channels, seed=2, dtype=dtype)


def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return ops.pixel_norm(x, w, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_twice_rule(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_twice_rule(norm, (feature_map(shape, "nhwc", dtype), *parameters(shape[1], dtype)), "cuda")


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    assert_twice_rule(norm, (feature_map((2, 20, 5, 13), layout, dtype), *parameters(20, dtype)), "cuda")


def test_more_images_than_parts() -> None:
    assert_twice_rule(norm, (feature_map((300, 4, 2, 3), "nhwc"), *parameters(4)), "cuda")


def test_large_mean_keeps_its_precision() -> None:
    assert_twice_rule(norm, (feature_map((1, 64, 4, 8), "nhwc") + 1000, *parameters(64)), "cuda")


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("channels", (20, 40, 100, 200))
def test_repeats_are_bit_equal_whatever_the_order_of_threads(channels: int, dtype: torch.dtype) -> None:
    tensors = (feature_map((2, channels, 9, 15), "nhwc", dtype), *parameters(channels, dtype))
    inputs = [moved(t, DEVICE) for t in tensors]
    first = results(norm, inputs, "cuda")
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, results(norm, inputs, "cuda"), strict=True))
    finally:
        simulator.seed = 0


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_keeps_the_memory_layout(layout: str) -> None:
    x, w, b = (moved(t, DEVICE) for t in (feature_map((2, 16, 5, 6), layout), *parameters(16)))
    with fastsr.backend("cuda"):
        assert ops.pixel_norm(x, w, b).stride() == x.stride()


@pytest.mark.parametrize("shape", ((0, 16, 4, 4), (2, 16, 0, 4)))
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True, device=DEVICE)
    w, b = (moved(p, DEVICE).requires_grad_() for p in parameters(16))
    with fastsr.backend("cuda"):
        ops.pixel_norm(x, w, b).sum().backward()
    assert x.grad is not None and x.grad.shape == shape
    assert w.grad is not None and not w.grad.any() and b.grad is not None and not b.grad.any()


def test_nan_stays_in_its_pixel() -> None:
    x = feature_map((1, 64, 3, 5), "nhwc")
    x[0, 3, 1, 2] = torch.nan
    with fastsr.backend("cuda"):
        y = ops.pixel_norm(*(moved(t, DEVICE) for t in (x, *parameters(64))))
    bad = torch.zeros(1, 64, 3, 5, dtype=torch.bool)
    bad[:, :, 1, 2] = True
    assert torch.equal(y.isnan().cpu(), bad)


def test_float32_parameters_beside_a_half_map() -> None:
    x = moved(feature_map((1, 16, 5, 7), "nhwc", HALF), DEVICE).requires_grad_()
    w, b = (moved(p, DEVICE).requires_grad_() for p in parameters(16))
    with fastsr.backend("cuda"):
        y = ops.pixel_norm(x, w, b)
        gradients = torch.autograd.grad(y.sum(), (x, w, b))
    assert [t.dtype for t in (y, *gradients)] == [HALF, HALF, FLOAT, FLOAT]
    assert all(g.isfinite().all() for g in gradients)


def test_too_many_channels_are_an_error() -> None:
    inputs = [moved(t, DEVICE) for t in (feature_map((1, 257, 2, 2), "nhwc"), *parameters(257))]
    with fastsr.backend("cuda"), pytest.raises(BackendError, match="257 channels exceed 256"):
        norm(*inputs)


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_opcheck(layout: str) -> None:
    x, w, b = (moved(t, DEVICE) for t in (feature_map((2, 8, 3, 5), layout), *parameters(8)))
    with fastsr.backend("cuda"):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        torch.library.opcheck(torch.ops.fastsr.pixel_norm.default, (*leaves, 1e-6))
        arguments = (torch.randn_like(x), x, w, 1e-6)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.fastsr.pixel_norm_backward.default, arguments, test_utils=tests)
