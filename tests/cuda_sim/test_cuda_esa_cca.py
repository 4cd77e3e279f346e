"""esa_cca in CUDA C++ against float64: simulated, or on the GPU if there is one. It is for inference: no gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import simulator
import torch
from kernel_checks import LAYOUTS, assert_twice_rule, device_of, feature_map, moved, results, weight
from test_cuda_esa import BLUEPRINT, PLAIN, case
from torch import Tensor

import fastsr
from fastsr import ops

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = device_of("cuda")
# [N, C, H, W], inner channels, form, conv2_padding, norm: the networks' channels, several parts of an image and several
# tiles of the small map, channels beyond those of one CTA, parts of blocks.
CASES = (
    ((1, 64, 31, 52), 16, BLUEPRINT, 1, True),
    ((2, 64, 15, 17), 16, BLUEPRINT, 0, False),
    ((1, 20, 75, 33), 12, PLAIN, 1, True),
    ((1, 100, 16, 21), 20, BLUEPRINT, 1, True),
    ((2, 200, 15, 15), 16, PLAIN, 0, True),
)


def function(form: Any, padding: int) -> Callable[..., Tensor]:
    count = len(form._fields)

    def call(x: Tensor, shortcut: Tensor, *rest: Tensor) -> Tensor:
        return ops.esa_cca(x, shortcut, form._make(rest[:count]), *rest[count:], conv2_padding=padding)

    return call


def inputs_of(
    shape: tuple[int, int, int, int],
    f: int,
    form: type,
    norm: bool = True,
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
) -> list[Tensor]:
    c = shape[1]
    r = max(c // 16, 1)
    x, *weights = case(shape, f, form, dtype, layout)
    cca = [weight(r, c, 1, 1, seed=31, gain=3), weight(r, seed=32), weight(c, r, 1, 1, seed=33), weight(c, seed=34)]
    cca += [1 + weight(c, seed=35) / 4, weight(c, seed=36)] if norm else []
    return [x, feature_map(shape, layout, dtype, seed=1), *weights, *(p.to(dtype) for p in cca)]


def check(form: type, padding: int, inputs: list[Tensor]) -> None:
    assert_twice_rule(function(form, padding), inputs, "cuda", gradients=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "f", "form", "padding", "norm"), CASES)
def test_twice_rule(shape: Any, f: int, form: type, padding: int, norm: bool, dtype: torch.dtype) -> None:
    check(form, padding, inputs_of(shape, f, form, norm, dtype))


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    check(BLUEPRINT, 1, inputs_of((2, 20, 16, 19), 8, BLUEPRINT, True, dtype, layout))


def test_a_large_offset_costs_no_accuracy() -> None:
    inputs = inputs_of((1, 16, 40, 25), 16, BLUEPRINT)
    inputs[0] += 1000
    check(BLUEPRINT, 1, inputs)


def test_more_images_than_parts() -> None:
    check(PLAIN, 1, inputs_of((270, 4, 13, 13), 4, PLAIN))


def test_a_constant_map() -> None:
    inputs = inputs_of((1, 16, 20, 20), 16, BLUEPRINT)
    inputs[0][:, ::2] = 0.1
    check(BLUEPRINT, 1, inputs)


def test_nan_stays_in_its_image() -> None:
    inputs = [moved(t, DEVICE) for t in inputs_of((2, 16, 16, 17), 8, BLUEPRINT)]
    inputs[0][1, 3, 2, 2] = torch.nan
    y = results(function(BLUEPRINT, 1), inputs, "cuda", gradients=False)[0]
    assert y[0].isfinite().all() and y[1].isnan().all()


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("channels", (20, 40, 100, 200))
def test_repeats_are_bit_equal_whatever_the_order_of_threads(channels: int, dtype: torch.dtype) -> None:
    inputs = [moved(t, DEVICE) for t in inputs_of((2, channels, 19, 29), 16, BLUEPRINT, dtype=dtype)]
    first = results(function(BLUEPRINT, 1), inputs, "cuda", gradients=False)[0]
    try:
        for simulator.seed in (1, 2):
            assert torch.equal(first, results(function(BLUEPRINT, 1), inputs, "cuda", gradients=False)[0])
    finally:
        simulator.seed = 0


def test_empty() -> None:
    inputs = [moved(t, DEVICE) for t in inputs_of((0, 8, 16, 16), 16, BLUEPRINT)]
    assert results(function(BLUEPRINT, 1), inputs, "cuda", gradients=False)[0].shape == (0, 8, 16, 16)


def test_a_map_that_is_reduced_already_gives_the_same() -> None:
    x, shortcut, *rest = (moved(t, DEVICE) for t in inputs_of((1, 64, 20, 23), 12, BLUEPRINT, dtype=HALF))
    weights, cca = BLUEPRINT._make(rest[:18]), rest[18:]
    reduced = torch.nn.functional.conv2d(x.float(), weights.conv1_weight.float(), weights.conv1_bias.float()).half()
    reduced = torch.nn.functional.pad(reduced, (0, 0, 0, 0, 0, 4)).contiguous(memory_format=torch.channels_last)
    with fastsr.backend("cuda"), torch.no_grad():
        expected = ops.esa_cca(x, shortcut, weights, *cca, conv2_padding=1)
        y = ops.esa_cca(x, shortcut, weights, *cca, conv2_padding=1, reduced=reduced)
        other = ops.esa_cca(x, shortcut, weights, *cca, conv2_padding=1, reduced=reduced + 1)
    # Of 1 ulp in some numbers of conv1, which is another order of its sums.
    assert (y - expected).abs().max() < 0.02 < (other - expected).abs().max()


def test_with_autograd_it_is_two_operators_that_have_one() -> None:
    inputs = inputs_of((1, 16, 15, 16), 8, BLUEPRINT)
    assert_twice_rule(function(BLUEPRINT, 1), inputs, "cuda")


def test_wrong_arguments_are_named() -> None:
    x, shortcut, *rest = (moved(t, DEVICE) for t in inputs_of((1, 8, 15, 15), 8, BLUEPRINT))
    call = function(BLUEPRINT, 1)
    with fastsr.backend("cuda"), torch.no_grad():
        with pytest.raises(fastsr.InputError, match="esa_cca: x is 12x15 pixels"):
            call(x[:, :, :12], shortcut[:, :, :12], *rest)
        with pytest.raises(fastsr.InputError, match="esa_cca: shortcut has shape"):
            call(x, shortcut[:, :4], *rest)
        with pytest.raises(fastsr.InputError, match="esa_cca: conv4_weight has shape"):
            call(x, shortcut, *rest[:16], rest[16][:4], *rest[17:])
        with pytest.raises(fastsr.InputError, match="esa_cca: reduced has shape"):
            ops.esa_cca(x, shortcut, BLUEPRINT._make(rest[:18]), *rest[18:], conv2_padding=1, reduced=x)


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_fake_and_layout(layout: str) -> None:
    x, shortcut, *rest = (moved(t, DEVICE) for t in inputs_of((1, 8, 13, 14), 8, BLUEPRINT, layout=layout))
    arguments = (x, None, shortcut, rest[:18], 1, *rest[18:], 1e-5)
    with fastsr.backend("cuda"):
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.fastsr.esa_cca.default, arguments, test_utils=checks)
        y = torch.ops.fastsr.esa_cca(*arguments)
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    assert y.is_contiguous(memory_format=memory_format)
