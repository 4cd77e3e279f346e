"""pointwise in CUDA C++ against float64: simulated, or on the GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import kernel_checks as kc
import pytest
import simulator
import torch
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import BackendError

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = kc.device_of("cuda")

# Channels of the inputs, output channels, batch, height, width, activation: the networks' shapes, then odd ones.
CASES = (
    ((32, 32, 32, 32), 64, 1, 9, 13, "none"),
    ((64,) * 8, 64, 1, 5, 7, "gelu"),
    ((58,), 58, 2, 17, 16, "none"),
    ((64,), 32, 1, 20, 15, "gelu"),
    ((7, 1, 33), 100, 1, 1, 1, "gelu"),
    ((130, 3), 5, 1, 4, 2, "none"),
)


def function(activation: str, shortcut: bool = False) -> Callable[..., Tensor]:
    if shortcut:
        return lambda w, b, added, *maps: ops.pointwise(maps, w, b, shortcut=added, activation=activation)
    return lambda w, b, *maps: ops.pointwise(maps, w, b, activation=activation)


def case(
    channels: Sequence[int], out: int, n: int, h: int, w: int, layout: str = "nhwc", dtype: torch.dtype = FLOAT
) -> list[Tensor]:
    maps = [kc.feature_map((n, c, h, w), layout, dtype, seed=i) for i, c in enumerate(channels)]
    return [kc.weight(out, sum(channels), 1, 1, dtype=dtype), kc.weight(out, seed=1, dtype=dtype), *maps]


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [kc.moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_twice_rule(shape: tuple, dtype: torch.dtype) -> None:
    *sizes, activation = shape
    kc.assert_twice_rule(function(activation), case(*sizes, dtype=dtype), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ("none", "gelu"))
@pytest.mark.parametrize("layout", ("nhwc", "nchw", "channel_slice"))
def test_with_a_shortcut(layout: str, activation: str, dtype: torch.dtype) -> None:
    w, b, *maps = case((40, 20), 33, 2, 6, 11, dtype=dtype)
    added = kc.feature_map((2, 33, 6, 11), layout, dtype, seed=9)
    kc.assert_twice_rule(function(activation, shortcut=True), [w, b, added, *maps], "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    kc.assert_twice_rule(function("gelu"), case((32, 7), 24, 2, 6, 11, layout, dtype), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_leaky_relu_away_from_its_kink(dtype: torch.dtype) -> None:
    """At the kink the derivative jumps, and rounding decides which side a value is on."""
    w, b, x = case((16,), 46, 1, 7, 11, dtype=dtype)
    b = torch.where(torch.arange(46) % 2 == 0, 9.0, -9.0).to(dtype)
    kc.assert_twice_rule(function("leaky_relu"), [w, b, x], "cuda")


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_repeats_are_bit_equal_whatever_the_order_of_threads(dtype: torch.dtype) -> None:
    inputs = on_device(case((32, 16), 40, 2, 18, 17, dtype=dtype))
    first = kc.results(function("gelu"), inputs, "cuda")
    try:
        for simulator.seed in (1, 2):
            again = kc.results(function("gelu"), inputs, "cuda")
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        simulator.seed = 0


@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_empty(size: tuple[int, int, int]) -> None:
    inputs = on_device(case((5, 8), 3, *size))
    y, *gradients = kc.results(function("gelu"), inputs, "cuda")
    assert y.shape == (size[0], 3, *size[1:])
    assert all(g.shape == i.shape and not g.any() for g, i in zip(gradients, inputs, strict=True))


def test_outputs_and_gradients_keep_the_layouts() -> None:
    w, b, x, y = on_device(case((8, 4), 6, 2, 5, 7, "nchw"))
    x = x.requires_grad_()
    y = y.contiguous(memory_format=torch.channels_last).requires_grad_()
    with fastsr.backend("cuda"):
        out = ops.pointwise((x, y), w, b)
        out.sum().backward()
    assert out.is_contiguous() and x.grad is not None and x.grad.is_contiguous()
    assert y.grad is not None and y.grad.is_contiguous(memory_format=torch.channels_last)


def test_nan_stays_in_its_pixel() -> None:
    w, b, x = on_device(case((16,), 16, 1, 4, 9, dtype=HALF))
    x[0, 3, 1, 2] = torch.nan
    with fastsr.backend("cuda"):
        out = ops.pointwise((x,), w, b, activation="gelu")
    bad = torch.zeros(1, 16, 4, 9, dtype=torch.bool)
    bad[:, :, 1, 2] = True
    assert torch.equal(out.isnan().cpu(), bad)


@pytest.mark.parametrize(
    ("accuracy", "dtype", "bound"), [("exact", HALF, 2e-3), ("fast", HALF, 8e-3), ("fast", FLOAT, 4e-3)]
)
def test_accuracies(accuracy: str, dtype: torch.dtype, bound: float) -> None:
    w, b, x = on_device(case((32,), 32, 1, 8, 8, dtype=dtype))
    with fastsr.backend("reference"):
        expected = function("gelu")(*(t.double() for t in (w, b, x)))
    with fastsr.backend("cuda"):
        default = function("gelu")(w, b, x)
        with fastsr.set_gelu(accuracy):
            y = function("gelu")(w, b, x)
    assert (y - expected).abs().max() < bound
    assert not torch.equal(y, default)


@pytest.mark.parametrize("dtype", (HALF, BFLOAT), ids=str)
def test_float32_weights_beside_a_half_map(dtype: torch.dtype) -> None:
    """As under autocast: gradients of the weights are float32."""
    w, b, x = on_device(case((16,), 24, 1, 5, 7))
    half, w, b = x.to(dtype).requires_grad_(), w.requires_grad_(), b.requires_grad_()
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=dtype):
        y = ops.pointwise((half,), w, b, activation="gelu")
        dx, dw, db = torch.autograd.grad(y.sum(), (half, w, b))
    assert y.dtype == dx.dtype == dtype and dw.dtype == db.dtype == FLOAT
    want = torch.nn.functional.gelu(torch.nn.functional.conv2d(half.double(), w.double(), b.double()))
    torch.testing.assert_close(y.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_too_many_inputs_are_an_error() -> None:
    w, b, *maps = on_device(case((1,) * 17, 2, 1, 2, 2))
    with fastsr.backend("cuda"), pytest.raises(BackendError, match="17 inputs exceed 16"):
        ops.pointwise(maps, w, b)


def test_opcheck() -> None:
    w, b, x, y = (t.requires_grad_() for t in on_device(case((3, 5), 4, 2, 3, 5)))
    grad = kc.moved(kc.feature_map((2, 4, 3, 5), "nhwc"), DEVICE)
    added = kc.moved(kc.feature_map((2, 4, 3, 5), "nhwc", seed=5), DEVICE)
    backward = (grad, [x.detach(), y.detach()], w.detach(), b.detach(), added, 1)
    with fastsr.backend("cuda"):
        torch.library.opcheck(torch.ops.fastsr.pointwise.default, ([x, y], w, b, added.requires_grad_(), 1))
        torch.library.opcheck(
            torch.ops.fastsr.pointwise_backward.default, backward, test_utils=("test_schema", "test_faketensor")
        )
