"""alk_conv and alk_stage in CUDA C++ on a GPU, against float64 and beside Triton. Needs a GPU: `pytest tests/gpu`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import assert_graph_replays, assert_twice_rule, feature_map, float32_precision, results, weight
from tf32_convolutions import assert_twice_rule as assert_twice
from tf32_convolutions import convolutions_in_tf32
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.ops import ALKConvWeights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
PATCHES, IMAGE = (16, 48, 48), (1, 181, 317)  # n, h, w: a training batch, and an image of odd sizes
Case = tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Tensor]]


@pytest.fixture(params=("cuda", "triton"))
def backend(request: pytest.FixtureRequest) -> str:
    reason = fastsr.can_run("alk_stage", request.param, torch.empty(1, 64, 8, 8, device="cuda"))
    if reason is not None:
        pytest.skip(reason)
    return request.param


def weights(c: int, k: int, dtype: torch.dtype, taps: int = 9) -> list[Tensor]:
    shapes = ((k, c, 1, 1), (k, 1, taps, 1), (k,), (k, 1, 1, taps), (k,), (k, 1, 3, 3), (k,), (k,), (k,))
    return [weight(*s, seed=i, gain=0.3 if len(s) == 1 else 1.0, dtype=dtype) for i, s in enumerate(shapes)]


def alk_conv(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    n, h, w = size
    inputs = [feature_map((n, 64, h, w), "nhwc", dtype), *weights(64, 32, dtype)]
    return lambda x, *rest: ops.alk_conv(x, ALKConvWeights(*rest), activation="gelu"), inputs


def alk_stage(size: tuple[int, int, int], dtype: torch.dtype, taps: int = 9) -> Case:
    n, h, w = size
    distil = [weight(32, 64, 1, 1, seed=9, dtype=dtype), weight(32, seed=10, gain=0.3, dtype=dtype)]
    inputs = [feature_map((n, 64, h, w), "nhwc", dtype), *distil, *weights(64, 64, dtype, taps)]
    return lambda x, d, b, *rest: ops.alk_stage(x, d, b, ALKConvWeights(*rest)), inputs


by_case = pytest.mark.parametrize("case", (alk_conv, alk_stage), ids=lambda case: case.__name__)


@by_case
@pytest.mark.parametrize("size", (PATCHES, IMAGE), ids=("patches", "image"))
@pytest.mark.parametrize("dtype", (FLOAT, HALF, BFLOAT), ids=str)
def test_twice_rule(case: Callable[..., Case], size: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    with float32_precision("ieee"):
        assert_twice_rule(*case(size, dtype), backend)


@pytest.mark.parametrize("taps", (13, 21, 31))
@pytest.mark.parametrize("dtype", (FLOAT, HALF, BFLOAT), ids=str)
def test_twice_rule_of_large_filters(dtype: torch.dtype, taps: int, backend: str) -> None:
    with float32_precision("ieee"):
        assert_twice_rule(*alk_stage(IMAGE, dtype, taps), backend)


@by_case
@pytest.mark.parametrize("size", (PATCHES, IMAGE), ids=("patches", "image"))
def test_twice_rule_in_tf32(case: Callable[..., Case], size: tuple[int, int, int], backend: str) -> None:
    function, inputs = case(size, FLOAT)
    inputs = [t.cuda() for t in inputs]
    exact = results(function, [t.double() for t in inputs], "reference")
    with convolutions_in_tf32():
        plain = results(function, [t.double() for t in inputs], "reference")
    with float32_precision("tf32"):
        assert_twice(results(function, inputs, backend), exact, plain)


@by_case
def test_cuda_and_triton_agree(case: Callable[..., Case]) -> None:
    """To a few roundings of float16 at the results' scale."""
    for name in ("cuda", "triton"):
        reason = fastsr.can_run("alk_stage", name, torch.empty(1, 64, 8, 8, device="cuda"))
        if reason is not None:
            pytest.skip(reason)
    function, inputs = case(IMAGE, HALF)
    inputs = [t.cuda() for t in inputs]
    for a, b in zip(*(results(function, inputs, name) for name in ("cuda", "triton")), strict=True):
        assert (a.double() - b.double()).abs().max() <= 16 * torch.finfo(HALF).eps * a.double().abs().max()


@by_case
def test_twenty_runs_are_bit_equal(case: Callable[..., Case], backend: str) -> None:
    """A race, or an order of summation that varies, would show."""
    function, inputs = case(IMAGE, HALF)
    inputs = [t.cuda() for t in inputs]
    first = results(function, inputs, backend)
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(first, results(function, inputs, backend), strict=True))


@by_case
def test_graph_replays_on_changed_inputs(case: Callable[..., Case], backend: str) -> None:
    function, inputs = case(IMAGE, HALF)
    assert_graph_replays(function, inputs, backend)


def test_other_device_and_stream() -> None:
    """The kernels run on the device of x, whatever the current one, and on its current stream."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    function, inputs = alk_stage(PATCHES, HALF)
    with fastsr.backend("cuda"), torch.no_grad():
        first, second = (function(*(t.to(f"cuda:{i}") for t in inputs)) for i in range(2))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))


def test_more_elements_than_32_bits_count() -> None:
    """The last rows of an image of 2^31 elements and more are those of the rows alone."""
    rows, columns = 33_600, 1_001
    x = torch.empty(1, 64, rows, columns, dtype=HALF, device="cuda", memory_format=torch.channels_last)
    assert x.numel() > 2**31
    x.normal_()
    w = ALKConvWeights(*(t.cuda() for t in weights(64, 64, HALF)))
    with torch.no_grad(), fastsr.backend("cuda"):
        end = ops.alk_conv(x, w)[:, :, -16:]
        alone = ops.alk_conv(x[:, :, -32:], w)[:, :, 16:]
    assert torch.equal(end, alone)
