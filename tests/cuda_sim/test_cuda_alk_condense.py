"""alk_condense in CUDA C++ against float64: simulated, or on the GPU if there is one. Inference: no gradients."""

from __future__ import annotations

from typing import Any

import kernel_checks as kc
import pytest
import simulator
import torch
from test_cuda_alk import weights
from torch import Tensor
from torch.nn import functional as F

import fastsr
from fastsr import ops
from fastsr.ops.alk_condense import pack_alk_condense

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = kc.device_of("cuda")
# [N, C, H, W], K, D, outputs, inner, taps: the network's channels, sides below a tile, channels of odd numbers.
CASES = (
    ((1, 64, 18, 33), 32, 32, 64, 16, 9),
    ((2, 20, 9, 7), 10, 7, 20, 12, 3),
    ((1, 58, 17, 16), 29, 29, 58, 20, 7),
    ((1, 12, 1, 2), 5, 40, 33, 32, 1),
)


def condense(x: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, *w: Tensor) -> tuple[Tensor, Tensor]:
    """The map, and conv1 of it without the padding."""
    y, reduced = ops.alk_condense(x, (d1, d2, d3), ops.ALKConvWeights(*w[:9]), *w[9:])
    return y, F.conv2d(y, *w[11:]) if reduced is None else reduced[:, : w[11].shape[0]]


def inputs_of(
    shape: tuple[int, int, int, int],
    k: int,
    d: int,
    outputs: int,
    inner: int,
    taps: int,
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
) -> list[Tensor]:
    n, c, h, w = shape
    maps = [kc.feature_map((n, d, h, w), layout, dtype, seed=1 + i) for i in range(3)]
    shapes = ((outputs, 3 * d + k, 1, 1), (outputs,), (inner, outputs, 1, 1), (inner,))
    rest = [kc.weight(*s, seed=20 + i, gain=1.0 if len(s) > 1 else 0.3, dtype=dtype) for i, s in enumerate(shapes)]
    return [kc.feature_map(shape, layout, dtype), *maps, *weights(c, k, taps, dtype), *rest]


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [kc.moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_twice_rule(sizes: Any, dtype: torch.dtype) -> None:
    kc.assert_twice_rule(condense, inputs_of(*sizes, dtype=dtype), "cuda", gradients=False)


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    inputs = inputs_of((2, 10, 6, 19), 10, 5, 20, 8, 5, dtype, layout)
    kc.assert_twice_rule(condense, inputs, "cuda", gradients=False)


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_repeats_are_bit_equal_whatever_the_order_of_threads(dtype: torch.dtype) -> None:
    inputs = on_device(inputs_of((1, 40, 18, 17), 20, 20, 40, 16, 9, dtype))
    first = kc.results(condense, inputs, "cuda", gradients=False)
    try:
        for simulator.seed in (1, 2):
            again = kc.results(condense, inputs, "cuda", gradients=False)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        simulator.seed = 0


def test_the_padding_is_zero() -> None:
    x, *maps_and = on_device(inputs_of((1, 12, 5, 6), 6, 6, 12, 5, 3))
    with fastsr.backend("cuda"), torch.no_grad():
        _, reduced = ops.alk_condense(x, maps_and[:3], ops.ALKConvWeights(*maps_and[3:12]), *maps_and[12:])
    assert reduced is not None and reduced.shape[1] == 16 and not reduced[:, 5:].any()
    assert reduced.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_weights_give_the_same(dtype: torch.dtype) -> None:
    x, d1, d2, d3, *w = on_device(inputs_of((1, 64, 17, 18), 32, 32, 64, 16, 9, dtype))
    given, rest = ops.ALKConvWeights(*w[:9]), w[9:]
    with fastsr.backend("cuda"), torch.no_grad():
        packed = pack_alk_condense(given, *rest)
        assert packed is not None and packed.dtype == torch.uint8
        plain = ops.alk_condense(x, (d1, d2, d3), given, *rest)
        for a, b in zip(ops.alk_condense(x, (d1, d2, d3), given, *rest, packed=packed), plain, strict=True):
            assert a is not None and b is not None and torch.equal(a, b)


def test_what_does_not_fit_is_two_operators() -> None:
    """More taps than 9, more channels than 32, autograd, the reference."""
    for sizes in (((1, 8, 5, 6), 4, 4, 8, 8, 11), ((1, 8, 5, 6), 40, 4, 8, 8, 3)):
        x, *rest = on_device(inputs_of(*sizes))
        with fastsr.backend("cuda"), torch.no_grad():
            assert ops.alk_condense(x, rest[:3], ops.ALKConvWeights(*rest[3:12]), *rest[12:])[1] is None
            assert pack_alk_condense(ops.ALKConvWeights(*rest[3:12]), *rest[12:]) is None
    kc.assert_twice_rule(condense, inputs_of((1, 12, 9, 7), 6, 6, 12, 5, 3), "cuda")
    x, *rest = on_device(inputs_of((1, 8, 5, 6), 4, 4, 8, 8, 3))
    with fastsr.backend("reference"):
        assert ops.alk_condense(x, rest[:3], ops.ALKConvWeights(*rest[3:12]), *rest[12:])[1] is None


@pytest.mark.parametrize("shape", [(0, 12, 4, 4), (2, 12, 0, 4)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    y, reduced = kc.results(condense, on_device(inputs_of(shape, 6, 6, 12, 16, 3)), "cuda", gradients=False)
    assert y.shape == shape and reduced.shape == (shape[0], 16, *shape[2:])


def test_wrong_arguments_are_named() -> None:
    x, d1, d2, d3, *w = on_device(inputs_of((1, 12, 5, 6), 6, 6, 12, 5, 3))
    with fastsr.backend("cuda"), torch.no_grad():
        with pytest.raises(fastsr.InputError, match="c5_weight has shape"):
            condense(x, d1, d2, d3, *w[:9], w[9][:, :20], *w[10:])
        with pytest.raises(fastsr.InputError, match="a distilled map has shape"):
            condense(x, *(d[:, :, :4] for d in (d1, d2, d3)), *w)


@pytest.mark.parametrize("packs", (False, True), ids=("weights", "packed"))
def test_maps_of_other_channels_than_the_weights_are_named(packs: bool) -> None:
    """Packed they have room for blocks of 32: as many bytes for 60 channels as for 64."""
    x, d1, d2, d3, *w = on_device(inputs_of((1, 64, 5, 6), 32, 32, 64, 16, 9))
    weights_and_rest = (ops.ALKConvWeights(*w[:9]), *w[9:])
    with fastsr.backend("cuda"), torch.no_grad():
        packed = pack_alk_condense(*weights_and_rest) if packs else None
        with pytest.raises(fastsr.InputError, match=r"pw_weight has shape .*; pass \[any, 60, 1, 1\]"):
            ops.alk_condense(x[:, :60], (d1, d2, d3), *weights_and_rest, packed=packed)
        with pytest.raises(fastsr.InputError, match=r"c5_weight has shape .*; pass \[any, 125, 1, 1\]"):
            ops.alk_condense(x, [d[:, :31] for d in (d1, d2, d3)], *weights_and_rest, packed=packed)


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_fakes_and_layouts(layout: str) -> None:
    x, *rest = on_device(inputs_of((1, 12, 5, 6), 6, 6, 12, 5, 3, layout=layout))
    checks = ("test_schema", "test_faketensor")
    arguments = (x, rest[:3], *rest[3:], 1e-6)
    with fastsr.backend("cuda"):
        torch.library.opcheck(torch.ops.fastsr.alk_condense.default, arguments, test_utils=checks)
        packed = torch.ops.fastsr.alk_condense_pack(*rest[3:])
        arguments = (x, rest[:3], packed, 6, 3, 12, 5, 1e-6)
        torch.library.opcheck(torch.ops.fastsr.alk_condense_packed.default, arguments, test_utils=checks)
