"""conv_mix in CUDA C++ against float64: simulated, or on the GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable

import kernel_checks as kc
import pytest
import simulator
import torch
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import BackendError
from fastsr.reference import Activation

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = kc.device_of("cuda")

# [N, C, H, W], K, activation, depthwise: the network's widths in several tiles, fewer and more channels out, sides
# below a tile, one pixel, the ablations.
CASES: tuple[tuple[tuple[int, int, int, int], int, Activation, bool], ...] = (
    ((1, 58, 17, 18), 58, "gelu", True),
    ((2, 50, 9, 7), 50, "leaky_relu", True),
    ((1, 58, 9, 17), 58, "gelu", False),
    ((1, 64, 8, 16), 64, "none", True),
    ((3, 20, 1, 9), 33, "gelu", True),
    ((1, 12, 9, 1), 7, "leaky_relu", False),
    ((2, 58, 1, 1), 64, "gelu", True),
)


def function(activation: Activation = "gelu") -> Callable[..., Tensor]:
    def run(x: Tensor, shortcut: Tensor, *parameters: Tensor) -> Tensor:
        dw = parameters[:-4] or (None, None)
        return ops.conv_mix(x, shortcut, *dw, *parameters[-4:], activation=activation)

    return run


def inputs(
    shape: tuple[int, int, int, int],
    k: int,
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
    depthwise: bool = True,
) -> list[Tensor]:
    c = shape[1]
    shapes: list[tuple[int, ...]] = [(c, 1, 3, 3), (c,)] if depthwise else []
    shapes += [(c, c, 1, 1), (c,), (k, c, 1, 1), (k,)]
    maps = [kc.feature_map(shape, layout, dtype, seed=seed) for seed in range(2)]
    return maps + [kc.weight(*s, seed=i, gain=1.0 if len(s) > 1 else 0.3, dtype=dtype) for i, s in enumerate(shapes)]


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [kc.moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k", "activation", "depthwise"), CASES, ids=str)
def test_twice_rule(dtype: torch.dtype, shape, k: int, activation: Activation, depthwise: bool) -> None:
    kc.assert_twice_rule(function(activation), inputs(shape, k, dtype, depthwise=depthwise), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
@pytest.mark.parametrize("c", [7, 10, 16])
def test_layouts(layout: str, dtype: torch.dtype, c: int) -> None:
    """Channels one, two and 16 bytes at a time."""
    kc.assert_twice_rule(function(), inputs((2, c, 9, 11), c, dtype, layout), "cuda")


def test_layouts_may_differ() -> None:
    x, s, *w = inputs((2, 58, 9, 7), 58, HALF)
    for maps in ((x.contiguous(), s), (x, s.contiguous())):
        kc.assert_twice_rule(function(), [*maps, *w], "cuda")


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_output_keeps_layout(layout: str) -> None:
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    with fastsr.backend("cuda"):
        y = function()(*on_device(inputs((2, 24, 6, 11), 12, HALF, layout)))
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("depthwise", (False, True))
@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4), (2, 16, 4, 0)])
def test_empty(shape: tuple[int, int, int, int], depthwise: bool) -> None:
    parameters = inputs((1, 16, 1, 1), 8, depthwise=depthwise)[2:]
    tensors = on_device([torch.empty(shape), torch.empty(shape), *parameters])
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
    tensors = on_device(inputs((1, 58, 12, 30), 58, dtype))
    tensors[0][0, 57, 7, 15] = value
    with fastsr.backend("cuda"):
        y = function()(*tensors)
    touched = torch.zeros(12, 30, dtype=torch.bool)
    touched[6:9, 14:17] = True
    if value != value:  # GELU takes -inf to 0
        assert y[:, :, touched].isnan().all()
    assert not y[:, :, 7, 15].isfinite().any() and y[:, :, ~touched].isfinite().all()


@pytest.mark.parametrize(
    ("accuracy", "dtype", "bound"), [("exact", HALF, 4e-3), ("fast", HALF, 8e-3), ("fast", FLOAT, 4e-3)]
)
def test_accuracies(accuracy: str, dtype: torch.dtype, bound: float) -> None:
    tensors = on_device(inputs((1, 32, 8, 8), 32, dtype))
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
    x, s, *w = on_device(inputs((1, 16, 6, 7), 16))
    x, s, w = x.half().requires_grad_(), s.half(), [t.requires_grad_() for t in w]
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF):
        y = function()(x, s, *w)
        gradients = torch.autograd.grad(y.sum(), (x, *w))
    assert y.dtype == gradients[0].dtype == HALF
    assert all(g.dtype == FLOAT and g.isfinite().all() for g in gradients[1:])


def test_too_many_channels_fall_back_or_raise() -> None:
    for c, k in ((65, 8), (8, 66)):
        with fastsr.backend("cuda"), pytest.raises(BackendError, match=f"{max(c, k)} channels( out)? exceed 64"):
            function()(*on_device(inputs((1, c, 2, 2), k)))


@pytest.mark.parametrize("depthwise", (False, True))
def test_opcheck(depthwise: bool) -> None:
    tensors = on_device(inputs((2, 10, 3, 5), 12, HALF, depthwise=depthwise))
    head, tail = tensors[:2], tensors[2:] if depthwise else [None, None, *tensors[2:]]
    grad = torch.randn(2, 12, 3, 5, device=DEVICE, dtype=HALF)
    with fastsr.backend("cuda"):
        leaves = [t if t is None else t.detach().requires_grad_() for t in (*head, *tail)]
        torch.library.opcheck(torch.ops.fastsr.conv_mix.default, (*leaves, 1))
        torch.library.opcheck(torch.ops.fastsr.conv_mix_backward.default, (grad, *head, *tail, 1))
