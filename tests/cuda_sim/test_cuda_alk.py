"""alk_conv and alk_stage in CUDA C++ against float64: simulated, or on the GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kernel_checks as kc
import pytest
import simulator
import torch
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

# [N, C, H, W], K, taps, activation: several tiles, sides below one, padded channels, more than one pass of channels.
CASES: tuple[tuple[tuple[int, int, int, int], int, int, Activation], ...] = (
    ((1, 64, 18, 17), 64, 9, "none"),
    ((2, 12, 9, 7), 20, 3, "gelu"),
    ((1, 58, 3, 17), 80, 7, "gelu"),
    ((1, 3, 1, 1), 5, 1, "none"),
    ((1, 40, 17, 16), 12, 13, "none"),
)


def weights(c: int, k: int, taps: int, dtype: torch.dtype = FLOAT) -> list[Tensor]:
    shapes = ((k, c, 1, 1), (k, 1, taps, 1), (k,), (k, 1, 1, taps), (k,), (k, 1, 3, 3), (k,))
    convs = [kc.weight(*s, seed=i, gain=1.0 if len(s) > 1 else 0.3) for i, s in enumerate(shapes)]
    norm = [1 + kc.weight(k, seed=7, gain=0.3), kc.weight(k, seed=8, gain=0.3)]
    return [w.to(dtype) for w in convs + norm]


def conv(activation: Activation = "none") -> Callable[..., Tensor]:
    return lambda x, *w: ops.alk_conv(x, ops.ALKConvWeights(*w), activation=activation)


def conv_inputs(
    shape: tuple[int, int, int, int], k: int, taps: int, dtype: torch.dtype = FLOAT, layout: str = "nhwc"
) -> list[Tensor]:
    return [kc.feature_map(shape, layout, dtype), *weights(shape[1], k, taps, dtype)]


def stage(x: Tensor, d_weight: Tensor, d_bias: Tensor, *w: Tensor) -> tuple[Tensor, Tensor]:
    return ops.alk_stage(x, d_weight, d_bias, ops.ALKConvWeights(*w))


def stage_inputs(
    shape: tuple[int, int, int, int], d: int, taps: int, dtype: torch.dtype = FLOAT, layout: str = "nhwc"
) -> list[Tensor]:
    c = shape[1]
    distil = [kc.weight(d, c, 1, 1, seed=9, dtype=dtype), kc.weight(d, seed=10, gain=0.3, dtype=dtype)]
    return [kc.feature_map(shape, layout, dtype), *distil, *weights(c, c, taps, dtype)]


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [kc.moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k", "taps", "activation"), CASES, ids=str)
def test_conv_twice_rule(dtype: torch.dtype, shape, k: int, taps: int, activation: Activation) -> None:
    kc.assert_twice_rule(conv(activation), conv_inputs(shape, k, taps, dtype), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "d", "taps"), [((2, 40, 17, 5), 32, 9), ((1, 58, 9, 6), 29, 3), ((1, 20, 33, 5), 3, 5)], ids=str
)
def test_stage_twice_rule(dtype: torch.dtype, shape, d: int, taps: int) -> None:
    kc.assert_twice_rule(stage, stage_inputs(shape, d, taps, dtype), "cuda")


@contextmanager
def sixteen_bits_by_float32() -> Iterator[None]:
    """On a CPU PyTorch's convolutions of 16-bit maps are those of float32, rounded once, as they should be anyway.

    oneDNN, under them, does not come to an end with large filters.
    """
    before = F.conv2d

    def conv2d(x: Tensor, w: Tensor, b: Tensor | None = None, *rest: Any, **more: Any) -> Tensor:
        if x.is_cuda or x.dtype not in (HALF, BFLOAT):
            return before(x, w, b, *rest, **more)
        return before(x.float(), w.float(), None if b is None else b.float(), *rest, **more).to(x.dtype)

    F.conv2d = conv2d
    try:
        yield
    finally:
        F.conv2d = before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps", [5, 9, 11, 17, 25, 27, 33])
def test_any_kernel_size(dtype: torch.dtype, taps: int) -> None:
    """Down to the outermost taps: an image as wide as the filter."""
    with sixteen_bits_by_float32():
        kc.assert_twice_rule(conv(), conv_inputs((1, 8, 34, 35), 8, taps, dtype), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps", [27, 33])
def test_a_stage_of_large_filters(dtype: torch.dtype, taps: int) -> None:
    with sixteen_bits_by_float32():
        kc.assert_twice_rule(stage, stage_inputs((2, 40, 18, 17), 12, taps, dtype), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_leaky_relu_away_from_its_kink(dtype: torch.dtype) -> None:
    """At the kink the derivative jumps, and rounding decides which side a value is on."""
    inputs = conv_inputs((1, 16, 18, 9), 16, 9, dtype)
    inputs[-2] = 0.1 + 0.1 * inputs[-2].abs()
    inputs[-1] = torch.where(torch.arange(16) % 2 == 0, 2.0, -2.0).to(dtype)
    kc.assert_twice_rule(conv("leaky_relu"), inputs, "cuda")


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    kc.assert_twice_rule(stage, stage_inputs((2, 10, 6, 11), 5, 5, dtype, layout), "cuda")


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_output_keeps_layout(layout: str) -> None:
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    with fastsr.backend("cuda"):
        for out in stage(*on_device(stage_inputs((2, 24, 6, 11), 12, 9, HALF, layout))):
            assert out.is_contiguous(memory_format=memory_format)


def test_large_mean_keeps_its_precision() -> None:
    """The sums before the norm are far from zero, compared with how much they vary."""
    inputs = conv_inputs((1, 16, 5, 6), 16, 3)
    inputs[5] = inputs[5] + 300
    kc.assert_twice_rule(conv(), inputs, "cuda")


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4), (2, 16, 4, 0)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    inputs = on_device([torch.empty(shape), *stage_inputs((1, 16, 1, 1), 8, 9)[1:]])
    distilled, refined, *gradients = kc.results(stage, inputs, "cuda")
    assert distilled.shape == (shape[0], 8, *shape[2:]) and refined.shape == shape
    assert all(g.shape == i.shape and not g.any() for g, i in zip(gradients, inputs, strict=True))


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("taps", [9, 17, 25, 33])
def test_repeats_are_bit_equal_whatever_the_order_of_threads(taps: int, dtype: torch.dtype) -> None:
    inputs = on_device(stage_inputs((2, 40, 18, 17), 12, taps, dtype))
    first = kc.results(stage, inputs, "cuda")
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, kc.results(stage, inputs, "cuda"), strict=True))
    finally:
        simulator.seed = 0


def test_nan_reaches_its_neighbourhood_and_not_far_beyond() -> None:
    """Toeplitz products multiply zeros by neighbours, but only in tiles whose margin of 4 the NaN lies in."""
    x, *w = on_device(stage_inputs((1, 16, 40, 60), 8, 5, HALF))
    x[0, 3, 10, 10] = torch.nan
    with fastsr.backend("reference"):
        expected = stage(x, *w)[1].isnan()
    with fastsr.backend("cuda"):
        found = stage(x, *w)[1].isnan()
    assert found[expected].all()
    rows, columns = found[0].any(0).nonzero(as_tuple=True)
    assert rows.max() < 16 and columns.max() < 16


@pytest.mark.parametrize(
    ("accuracy", "dtype", "bound"), [("exact", HALF, 2e-3), ("fast", HALF, 8e-3), ("fast", FLOAT, 4e-3)]
)
def test_accuracies(accuracy: str, dtype: torch.dtype, bound: float) -> None:
    x, *w = on_device(stage_inputs((1, 32, 8, 8), 8, 9, dtype))
    with fastsr.backend("reference"):
        expected = stage(x.double(), *(t.double() for t in w))[0]
    with fastsr.backend("cuda"):
        default = stage(x, *w)[0]
        with fastsr.set_gelu(accuracy):
            y = stage(x, *w)[0]
    assert (y - expected).abs().max() < bound
    assert not torch.equal(y, default)


def test_float32_weights_beside_a_half_map() -> None:
    """As under autocast: gradients of the weights are float32."""
    x, *w = on_device(stage_inputs((1, 16, 6, 7), 8, 9))
    x, w = x.half().requires_grad_(), [t.requires_grad_() for t in w]
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF):
        distilled, refined = stage(x, *w)
        gradients = torch.autograd.grad((distilled.sum(), refined.sum()), (x, *w))
    assert distilled.dtype == refined.dtype == gradients[0].dtype == HALF
    assert all(g.dtype == FLOAT and g.isfinite().all() for g in gradients[1:])


def test_too_many_taps_or_channels_fall_back_or_raise() -> None:
    for inputs, reason in (
        (conv_inputs((1, 4, 3, 3), 4, 35), "35 taps exceed 33"),
        (conv_inputs((1, 4, 3, 3), 130, 3), "130 channels out exceed 128"),
    ):
        with fastsr.backend("cuda"), pytest.raises(BackendError, match=reason):
            conv()(*on_device(inputs))


def test_opcheck() -> None:
    tensors = on_device(stage_inputs((2, 16, 3, 5), 8, 3, HALF))
    arguments = [t.detach().requires_grad_() for t in tensors]
    grads = [torch.randn(2, c, 3, 5, device=DEVICE, dtype=HALF) for c in (8, 16)]
    with fastsr.backend("cuda"):
        torch.library.opcheck(torch.ops.fastsr.alk_stage.default, (*arguments, 1e-6))
        torch.library.opcheck(torch.ops.fastsr.alk_stage_backward.default, (*grads, *tensors, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_weights_give_the_same(dtype: torch.dtype) -> None:
    with fastsr.backend("cuda"), torch.no_grad():
        for taps in (9, 13):
            x, d, b, *rest = (t.to(DEVICE) for t in stage_inputs((1, 40, 17, 18), 20, taps, dtype))
            w = ops.ALKConvWeights(*rest)
            packed = ops.pack_alk_conv(w, d, b)
            assert packed is not None and packed.dtype == torch.uint8
            for given, expected in zip(
                ops.alk_stage(x, d, b, w, packed=packed), ops.alk_stage(x, d, b, w), strict=True
            ):
                assert torch.equal(given, expected)
            packed = ops.pack_alk_conv(w)
            expected = ops.alk_conv(x, w, activation="gelu")
            assert torch.equal(ops.alk_conv(x, w, activation="gelu", packed=packed), expected)


def test_packed_weights_are_left_aside_where_they_do_not_fit() -> None:
    """Other maps' dtype, autograd, another backend: the call runs on the weights themselves."""
    x, *rest = (t.to(DEVICE) for t in conv_inputs((1, 12, 9, 8), 12, 5))
    w = ops.ALKConvWeights(*rest)
    with fastsr.backend("cuda"):
        packed = ops.pack_alk_conv(w)
        assert packed is not None
        garbage = packed.clone().fill_(255)
        x.requires_grad_()
        ops.alk_conv(x, w, packed=garbage).sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()
    with fastsr.backend("reference"), torch.no_grad():
        assert ops.alk_conv(x, w, packed=garbage).isfinite().all()
    big = ops.ALKConvWeights(*weights(12, 12, 41))
    with fastsr.backend("cuda"):
        assert ops.pack_alk_conv(ops.ALKConvWeights(*(t.to(DEVICE) for t in big))) is None


def test_the_parts_of_a_network_pack() -> None:
    block = fastsr.nn.ALKDB(16, lk_size=5, esa_channels=8).to(DEVICE)
    with fastsr.backend("cuda"), torch.no_grad():
        for conv_part, distil in ((block.c1_r, block.c1_d), (block.c4, None)):
            x = kc.feature_map((1, 16, 9, 10), "nhwc").to(DEVICE)
            found = []
            for _ in range(2):
                found.append((conv_part(x),) if distil is None else conv_part.stage(x, distil))
                conv_part.pack(distil)
                assert conv_part.packed is not None and conv_part.packed.dtype == torch.uint8
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
