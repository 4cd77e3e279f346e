"""bsconv in CUDA C++ against float64: simulated, or on the GPU if there is one."""

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

# [N, C, H, W], K, activation, with a shortcut: the head's, the stage's and c4's channels in several tiles, the folded
# head, channels that fill no fragment, sides below a tile, one pixel.
CASES: tuple[tuple[tuple[int, int, int, int], int, Activation, bool], ...] = (
    ((1, 12, 17, 18), 64, "none", False),
    ((1, 64, 9, 33), 64, "gelu", True),
    ((2, 64, 11, 17), 32, "gelu", False),
    ((2, 3, 9, 5), 64, "none", False),
    ((1, 58, 10, 7), 58, "leaky_relu", True),
    ((3, 20, 1, 9), 33, "gelu", True),
    ((1, 33, 9, 1), 7, "leaky_relu", False),
    ((2, 5, 8, 16), 16, "none", True),
    ((2, 40, 1, 1), 31, "gelu", True),
)


def function(activation: Activation = "gelu") -> Callable[..., Tensor]:
    def run(x: Tensor, pw: Tensor, dw: Tensor, bias: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return ops.bsconv(x, pw, dw, bias, shortcut=shortcut, activation=activation)

    return run


def inputs(
    shape: tuple[int, int, int, int],
    k: int,
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
    shortcut: bool = True,
) -> list[Tensor]:
    n, c, h, w = shape
    weights = [((k, c, 1, 1), 1.0), ((k, 1, 3, 3), 1.0), ((k,), 0.3)]
    tensors = [kc.feature_map(shape, layout, dtype)]
    tensors += [kc.weight(*s, seed=i, gain=gain, dtype=dtype) for i, (s, gain) in enumerate(weights)]
    return [*tensors, kc.feature_map((n, k, h, w), layout, dtype, seed=1)] if shortcut else tensors


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [kc.moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k", "activation", "shortcut"), CASES, ids=str)
def test_twice_rule(dtype: torch.dtype, shape, k: int, activation: Activation, shortcut: bool) -> None:
    kc.assert_twice_rule(function(activation), inputs(shape, k, dtype, shortcut=shortcut), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
@pytest.mark.parametrize(("c", "k"), [(7, 9), (10, 34), (16, 40)])
def test_layouts(layout: str, dtype: torch.dtype, c: int, k: int) -> None:
    """Channels one, two and 16 bytes at a time."""
    kc.assert_twice_rule(function(), inputs((2, c, 9, 11), k, dtype, layout), "cuda")


def test_layouts_may_differ() -> None:
    x, *w, s = inputs((2, 58, 9, 7), 58, HALF)
    for maps in ((x.contiguous(), s), (x, s.contiguous())):
        kc.assert_twice_rule(function(), [maps[0], *w, maps[1]], "cuda")


def test_shortcut_that_is_the_input() -> None:
    """Gradients of both uses of x add up."""
    tensors = inputs((2, 24, 9, 9), 24, HALF, shortcut=False)
    kc.assert_twice_rule(lambda x, *w: ops.bsconv(x, *w, shortcut=x, activation="gelu"), tensors, "cuda")


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_output_keeps_layout(layout: str) -> None:
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    with fastsr.backend("cuda"):
        y = function()(*on_device(inputs((2, 24, 6, 11), 12, HALF, layout)))
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("activation", ("none", "gelu"))
@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4), (2, 16, 4, 0)])
def test_empty(shape: tuple[int, int, int, int], activation: Activation) -> None:
    parameters = inputs((1, 16, 1, 1), 8)[1:4]
    tensors = on_device([torch.empty(shape), *parameters, torch.empty(shape[0], 8, *shape[2:])])
    y, *gradients = kc.results(function(activation), tensors, "cuda")
    assert y.shape == (shape[0], 8, *shape[2:])
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, tensors, strict=True))


@pytest.mark.parametrize("k", (20, 58))
@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_repeats_are_bit_equal_whatever_the_order_of_threads(dtype: torch.dtype, k: int) -> None:
    tensors = on_device(inputs((2, 40, 18, 17), k, dtype))
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
    assert not y[:, :, touched].isfinite().all() and y[:, :, ~touched].isfinite().all()


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
    x, *w, s = on_device(inputs((1, 16, 6, 7), 16))
    x, s, w = x.half().requires_grad_(), s.half(), [t.requires_grad_() for t in w]
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF):
        y = function()(x, *w, s)
        gradients = torch.autograd.grad(y.sum(), (x, *w))
    assert y.dtype == gradients[0].dtype == HALF
    assert all(g.dtype == FLOAT and g.isfinite().all() for g in gradients[1:])


def test_what_the_kernels_do_not_have_falls_back_or_raises() -> None:
    for c, k in ((65, 8), (8, 66)):
        with fastsr.backend("cuda"), pytest.raises(BackendError, match=f"{max(c, k)} channels( out)? exceed 64"):
            function()(*on_device(inputs((1, c, 2, 2), k)))
    x, pw, dw, bias = on_device(inputs((1, 8, 6, 6), 8, shortcut=False))
    with fastsr.backend("cuda"), pytest.raises(BackendError, match="stride 2 and padding 1; cuda has"):
        ops.bsconv(x, pw, dw, bias, stride=2)


@pytest.mark.parametrize(("shortcut", "activation"), [(True, 1), (True, 0), (False, 2)])
def test_opcheck(shortcut: bool, activation: int) -> None:
    tensors: list[Tensor | None] = [*on_device(inputs((2, 10, 3, 5), 12, HALF, shortcut=shortcut))]
    tensors += [] if shortcut else [None]
    grad = torch.randn(2, 12, 3, 5, device=DEVICE, dtype=HALF)
    with fastsr.backend("cuda"):
        leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
        torch.library.opcheck(torch.ops.fastsr.bsconv.default, (*leaves, activation))
        torch.library.opcheck(torch.ops.fastsr.bsconv_backward.default, (grad, *tensors, activation))
