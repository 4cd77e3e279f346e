"""conv3x3_gelu in CUDA C++ against float64: simulated, or on the GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable

import kernel_checks as kc
import pytest
import simulator
import torch
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.reference import Activation

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = kc.device_of("cuda")

# [N, C, H, W], K, activation, shortcut: the networks' widths in several tiles, the first and the last convolution of
# a network, more channels than a block, sides below a tile, one pixel.
CASES: tuple[tuple[tuple[int, int, int, int], int, Activation, bool], ...] = (
    ((1, 58, 17, 18), 58, "gelu", True),
    ((2, 52, 9, 7), 48, "leaky_relu", False),
    ((1, 3, 10, 33), 58, "none", False),
    ((1, 58, 8, 16), 12, "none", True),
    ((1, 64, 9, 17), 64, "gelu", False),
    ((1, 70, 4, 5), 130, "gelu", True),
    ((2, 20, 1, 3), 16, "gelu", False),
    ((1, 5, 1, 1), 1, "leaky_relu", False),
)


def function(activation: Activation = "gelu") -> Callable[..., Tensor]:
    def run(x: Tensor, w: Tensor, b: Tensor, s: Tensor | None = None) -> Tensor:
        return ops.conv3x3_gelu(x, w, b, activation=activation, shortcut=s)

    return run


def inputs(
    shape: tuple[int, int, int, int],
    k: int,
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
    shortcut: bool = True,
) -> list[Tensor]:
    n, c, h, w = shape
    tensors = [kc.feature_map(shape, layout, dtype), kc.weight(k, c, 3, 3, dtype=dtype)]
    tensors.append(kc.weight(k, seed=1, gain=0.3, dtype=dtype))
    return [*tensors, kc.feature_map((n, k, h, w), layout, dtype, seed=1)] if shortcut else tensors


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [kc.moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k", "activation", "shortcut"), CASES, ids=str)
def test_twice_rule(dtype: torch.dtype, shape, k: int, activation: Activation, shortcut: bool) -> None:
    kc.assert_twice_rule(function(activation), inputs(shape, k, dtype, shortcut=shortcut), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
@pytest.mark.parametrize("c", [7, 10, 16])
def test_layouts(layout: str, dtype: torch.dtype, c: int) -> None:
    """Channels one, two and 16 bytes at a time."""
    kc.assert_twice_rule(function(), inputs((2, c, 9, 11), c, dtype, layout), "cuda")


def test_layouts_may_differ() -> None:
    x, w, b, s = inputs((2, 58, 9, 7), 58, HALF)
    for maps in ((x.contiguous(), s), (x, s.contiguous())):
        kc.assert_twice_rule(function(), [maps[0], w, b, maps[1]], "cuda")


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_output_keeps_layout(layout: str) -> None:
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    with fastsr.backend("cuda"):
        y = function()(*on_device(inputs((2, 24, 6, 11), 12, HALF, layout)))
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4), (2, 16, 4, 0)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    tensors = on_device([torch.empty(shape), *inputs((1, 16, 1, 1), 8)[1:3]])
    y, *gradients = kc.results(function(), tensors, "cuda")
    assert y.shape == (shape[0], 8, *shape[2:])
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, tensors, strict=True))


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_repeats_are_bit_equal_whatever_the_order_of_threads(dtype: torch.dtype) -> None:
    tensors = on_device(inputs((2, 40, 18, 17), 58, dtype))
    first = kc.results(function(), tensors, "cuda")
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, kc.results(function(), tensors, "cuda"), strict=True))
    finally:
        simulator.seed = 0


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_nan_and_inf_stay_where_they_belong(dtype: torch.dtype, value: float) -> None:
    x, w, b = on_device(inputs((1, 58, 12, 24), 58, dtype, shortcut=False))
    x[0, 57, 7, 15] = value
    with fastsr.backend("cuda"):
        y = function("none")(x, w, b)
    touched = torch.zeros(12, 24, dtype=torch.bool)
    touched[6:9, 14:17] = True
    assert not y[:, :, touched].isfinite().any() and y[:, :, ~touched].isfinite().all()


@pytest.mark.parametrize(
    ("accuracy", "dtype", "bound"), [("exact", HALF, 2e-3), ("fast", HALF, 8e-3), ("fast", FLOAT, 4e-3)]
)
def test_accuracies(accuracy: str, dtype: torch.dtype, bound: float) -> None:
    tensors = on_device(inputs((1, 32, 8, 8), 32, dtype, shortcut=False))
    with fastsr.backend("reference"):
        expected = function()(*(t.double() for t in tensors))
    with fastsr.backend("cuda"):
        default = function()(*tensors)
        with fastsr.set_gelu(accuracy):
            y = function()(*tensors)
    assert (y - expected).abs().max() < bound
    assert not torch.equal(y, default)


def test_float32_weights_beside_a_half_map() -> None:
    """As under autocast: gradients of the weights are float32."""
    x, *w = on_device(inputs((1, 16, 6, 7), 16, shortcut=False))
    x, w = x.half().requires_grad_(), [t.requires_grad_() for t in w]
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF):
        y = function()(x, *w)
        gradients = torch.autograd.grad(y.sum(), (x, *w))
    assert y.dtype == gradients[0].dtype == HALF
    assert all(g.dtype == FLOAT and g.isfinite().all() for g in gradients[1:])


@pytest.mark.parametrize(("c", "k"), [(58, 58), (7, 12), (70, 17)])
@pytest.mark.parametrize(("dtype", "other"), [(HALF, FLOAT), (BFLOAT, HALF), (FLOAT, HALF)], ids=str)
def test_results_do_not_depend_on_where_weights_begin_nor_on_their_dtype(
    c: int, k: int, dtype: torch.dtype, other: torch.dtype
) -> None:
    """Weights are copied by words where they can be, else by numbers. Those here are the same in both dtypes."""
    x, w, b = on_device(inputs((1, c, 9, 17), k, dtype, shortcut=False))
    w, b = (t.mul(64).round().div(64) for t in (w, b))
    grad = kc.moved(kc.feature_map((1, k, 9, 17), "nhwc", dtype, seed=2), DEVICE)
    begins_late = torch.empty(w.numel() + 1, dtype=dtype, device=DEVICE)[1:].view_as(w).copy_(w)

    def results(w: Tensor, b: Tensor) -> list[Tensor]:
        with fastsr.backend("cuda"):
            y = torch.ops.fastsr.conv3x3_gelu(x, w, b, None, 1)
            return [y, torch.ops.fastsr.conv3x3_gelu_backward(grad, x, w, b, 1, True)[0]]

    expected = results(w, b)
    for given in (results(begins_late, b), results(w.to(other), b.to(other))):
        assert all(torch.equal(a, e) for a, e in zip(given, expected, strict=True))


@pytest.mark.parametrize("activation", ("gelu", "none"))
def test_input_without_gradient(activation: Activation) -> None:
    x, w, b = on_device(inputs((1, 3, 12, 12), 58, shortcut=False))
    w.requires_grad_()
    with fastsr.backend("cuda"):
        function(activation)(x, w, b).sum().backward()
    with fastsr.backend("reference"):
        (expected,) = torch.autograd.grad(function(activation)(x, w, b).sum(), [w])
    assert x.grad is None and w.grad is not None
    torch.testing.assert_close(w.grad, expected, rtol=1e-4, atol=1e-3)


def test_opcheck() -> None:
    tensors = on_device(inputs((2, 10, 3, 5), 12, HALF))
    arguments = [t.detach().requires_grad_() for t in tensors]
    grad = torch.randn(2, 12, 3, 5, device=DEVICE, dtype=HALF)
    with fastsr.backend("cuda"):
        torch.library.opcheck(torch.ops.fastsr.conv3x3_gelu.default, (*arguments, 1))
        for needs_dx in (True, False):
            torch.library.opcheck(torch.ops.fastsr.conv3x3_gelu_backward.default, (grad, *tensors[:3], 1, needs_dx))
