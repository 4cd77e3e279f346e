"""conv_mix_reduce in CUDA C++ against float64: simulated, or on the GPU if there is one. Inference: no gradients."""

from __future__ import annotations

from collections.abc import Callable

import kernel_checks as kc
import pytest
import simulator
import torch
from test_cuda_conv_mix import inputs
from torch import Tensor
from torch.nn import functional as F

import fastsr
from fastsr import ops
from fastsr.errors import BackendError
from fastsr.reference import Activation

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = kc.device_of("cuda")

# [N, C, H, W], K, inner channels, activation, depthwise: the networks' widths in several tiles, as many channels as a
# tile has, fewer and more out, sides below a tile, one pixel, the ablations.
CASES: tuple[tuple[tuple[int, int, int, int], int, int, Activation, bool], ...] = (
    ((1, 58, 17, 18), 58, 16, "gelu", True),
    ((2, 52, 9, 33), 52, 16, "gelu", True),
    ((1, 64, 8, 16), 64, 16, "none", True),
    ((2, 50, 9, 7), 50, 12, "leaky_relu", True),
    ((1, 58, 9, 17), 58, 16, "gelu", False),
    ((3, 20, 1, 9), 33, 5, "gelu", True),
    ((1, 12, 9, 1), 7, 1, "leaky_relu", False),
    ((2, 58, 1, 1), 64, 16, "gelu", True),
)


def function(activation: Activation = "gelu") -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, shortcut: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The map, and conv1 of it without the padding."""
        dw, conv1 = parameters[:-6] or (None, None), parameters[-2:]
        y, reduced = ops.conv_mix_reduce(x, shortcut, *dw, *parameters[-6:], activation=activation)
        return y, F.conv2d(y, *conv1) if reduced is None else reduced[:, : conv1[0].shape[0]]

    return run


def reducing(
    shape: tuple[int, int, int, int],
    k: int,
    inner: int,
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
    depthwise: bool = True,
) -> list[Tensor]:
    conv1 = [kc.weight(inner, k, 1, 1, seed=20, dtype=dtype), kc.weight(inner, seed=21, gain=0.3, dtype=dtype)]
    return [*inputs(shape, k, dtype, layout, depthwise), *conv1]


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [kc.moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k", "inner", "activation", "depthwise"), CASES, ids=str)
def test_twice_rule(
    dtype: torch.dtype, shape: tuple[int, int, int, int], k: int, inner: int, activation: Activation, depthwise: bool
) -> None:
    tensors = reducing(shape, k, inner, dtype, depthwise=depthwise)
    kc.assert_twice_rule(function(activation), tensors, "cuda", gradients=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
@pytest.mark.parametrize("c", [7, 10, 16])
def test_layouts(layout: str, dtype: torch.dtype, c: int) -> None:
    """Channels one, two and 16 bytes at a time."""
    kc.assert_twice_rule(function(), reducing((2, c, 9, 11), c, 6, dtype, layout), "cuda", gradients=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_map_is_that_of_conv_mix(dtype: torch.dtype) -> None:
    """Bit by bit; and what is reduced is made of it as it was rounded, and rounded once."""
    tensors = on_device(reducing((1, 58, 19, 21), 58, 16, dtype))
    with fastsr.backend("cuda"), torch.no_grad():
        y, reduced = ops.conv_mix_reduce(*tensors)
        assert torch.equal(y, ops.conv_mix(*tensors[:-2]))
    assert reduced is not None
    exact = F.conv2d(y.double(), *(t.double() for t in tensors[-2:]))
    roundings = 8 if dtype == FLOAT else 0.5  # sums of float32 round at every step
    assert (reduced - exact).abs().max() < roundings * torch.finfo(dtype).eps * exact.abs().max()


def test_the_padding_is_zero() -> None:
    with fastsr.backend("cuda"), torch.no_grad():
        for dtype in DTYPES:
            _, reduced = ops.conv_mix_reduce(*on_device(reducing((2, 12, 5, 20), 10, 5, dtype)))
            assert reduced is not None and reduced.shape == (2, 16, 5, 20) and not reduced[:, 5:].any()
            assert reduced.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_repeats_are_bit_equal_whatever_the_order_of_threads(dtype: torch.dtype) -> None:
    tensors = on_device(reducing((2, 40, 18, 17), 58, 16, dtype))
    first = kc.results(function(), tensors, "cuda", gradients=False)
    try:
        for simulator.seed in (1, 2):
            again = kc.results(function(), tensors, "cuda", gradients=False)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        simulator.seed = 0


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_nan_and_inf_stay_where_they_belong(dtype: torch.dtype, value: float) -> None:
    tensors = on_device(reducing((1, 58, 12, 30), 58, 16, dtype))
    tensors[0][0, 57, 7, 15] = value
    with fastsr.backend("cuda"), torch.no_grad():
        y, reduced = function()(*tensors)
    at = torch.zeros(12, 30, dtype=torch.bool)
    at[6:9, 14:17] = True
    for result in (y, reduced):
        assert not result[:, :, 7, 15].isfinite().any() and result[:, :, ~at].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4), (2, 16, 4, 0)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    tensors = on_device([torch.empty(shape), torch.empty(shape), *reducing((1, 16, 1, 1), 8, 16)[2:]])
    y, reduced = kc.results(function(), tensors, "cuda", gradients=False)
    assert y.shape == (shape[0], 8, *shape[2:]) and reduced.shape == (shape[0], 16, *shape[2:])


def test_float32_weights_beside_a_half_map() -> None:
    """As under autocast."""
    x, s, *w = on_device(reducing((1, 16, 6, 7), 16, 8))
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF), torch.no_grad():
        y, reduced = ops.conv_mix_reduce(x.half(), s.half(), *w)
    assert reduced is not None and y.dtype == reduced.dtype == HALF
    expected = F.conv2d(y.float(), *w[-2:])
    assert (reduced[:, :8] - expected).abs().max() < 2e-3 * expected.abs().max()


def test_what_does_not_fit_is_conv_mix() -> None:
    """More than 16 channels inside the ESA, autograd, the reference; more than 64 channels there is no kernel for."""
    with fastsr.backend("cuda"), torch.no_grad():
        assert ops.conv_mix_reduce(*on_device(reducing((1, 8, 5, 6), 8, 17)))[1] is None
        with pytest.raises(BackendError, match="65 channels exceed 64"):
            ops.conv_mix_reduce(*on_device(reducing((1, 65, 2, 2), 8, 8)))
    kc.assert_twice_rule(function(), reducing((1, 12, 9, 7), 12, 5), "cuda")
    with fastsr.backend("reference"):
        assert ops.conv_mix_reduce(*on_device(reducing((1, 8, 5, 6), 8, 8)))[1] is None


def test_wrong_arguments_are_named() -> None:
    tensors = on_device(reducing((1, 12, 5, 6), 10, 5))
    with fastsr.backend("cuda"), torch.no_grad():
        for i, name in ((1, "shortcut"), (2, "dw_weight"), (5, "pw_bias"), (8, "conv1_weight"), (9, "conv1_bias")):
            with pytest.raises(fastsr.InputError, match=f"conv_mix_reduce: {name} has"):
                ops.conv_mix_reduce(*tensors[:i], tensors[i][..., :0], *tensors[i + 1 :])
        with pytest.raises(fastsr.InputError, match="conv_mix_reduce: activation is 'relu'"):
            ops.conv_mix_reduce(*tensors, activation="relu")  # type: ignore[arg-type]


@pytest.mark.parametrize("depthwise", (False, True))
@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_fakes_and_layouts(layout: str, depthwise: bool) -> None:
    tensors = on_device(reducing((2, 10, 3, 5), 12, 7, HALF, layout, depthwise))
    arguments = (*tensors[:2], *(tensors[2:] if depthwise else [None, None, *tensors[2:]]), 1)
    with fastsr.backend("cuda"):
        run = torch.ops.fastsr.conv_mix_reduce
        torch.library.opcheck(run.default, arguments, test_utils=("test_schema", "test_faketensor"))
        y, _ = run(*arguments)
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    assert y.is_contiguous(memory_format=memory_format)
