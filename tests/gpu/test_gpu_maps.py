"""The operators around the ALK stage at real sizes, both kinds of kernels. Needs a GPU: `pytest tests/gpu`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import assert_graph_replays, assert_twice_rule, feature_map, float32_precision, results, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.ops import BlueprintESAWeights, PlainESAWeights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
PATCHES, IMAGE = (16, 48, 48), (1, 181, 317)  # n, h, w: a training batch, and an image of odd sizes
BACKENDS = ("cuda", "triton")
Case = tuple[Callable[..., Tensor], list[Tensor]]


def maps(size: tuple[int, int, int], channels: int, dtype: torch.dtype, count: int = 1) -> list[Tensor]:
    n, h, w = size
    return [feature_map((n, channels, h, w), "nhwc", dtype, seed=seed) for seed in range(count)]


def weights(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    return [weight(*s, seed=i, gain=0.3 if len(s) == 1 else 1.0, dtype=dtype) for i, s in enumerate(shapes)]


def pointwise(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    """The fusion of a block: four maps of 32 channels."""
    inputs = [*weights([(64, 128, 1, 1), (64,)], dtype), *maps(size, 32, dtype, 4)]
    return lambda w, b, *xs: ops.pointwise(xs, w, b, activation="gelu"), inputs


def cca_norm(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    shapes = [(4, 64, 1, 1), (4,), (64, 4, 1, 1), (64,), (64,), (64,)]
    return ops.cca_norm, [*maps(size, 64, dtype, 2), *weights(shapes, dtype)]


def esa_plain(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    shapes = [(16, 58, 1, 1), (16,), *([(16, 16, 3, 3), (16,)] * 2), (16, 16, 1, 1), (16,), (58, 16, 1, 1), (58,)]
    return lambda x, *w: ops.esa(x, PlainESAWeights(*w)), [*maps(size, 58, dtype), *weights(shapes, dtype)]


def esa_blueprint(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    small = [(16, 16, 1, 1), (16, 1, 3, 3), (16,)] * 4
    shapes = [(16, 64, 1, 1), (16,), *small, (16, 16, 1, 1), (16,), (64, 16, 1, 1), (64,)]
    inputs = [*maps(size, 64, dtype), *weights(shapes, dtype)]
    return lambda x, *w: ops.esa(x, BlueprintESAWeights(*w), conv2_padding=1), inputs


def pixel_norm(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    return ops.pixel_norm, [*maps(size, 64, dtype), *weights([(64,), (64,)], dtype)]


CASES = (pointwise, cca_norm, esa_plain, esa_blueprint, pixel_norm)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
by_backend = pytest.mark.parametrize("backend", BACKENDS)


def skip_without(case: Callable[..., Case], backend: str) -> None:
    reason = fastsr.can_run(
        case.__name__.removesuffix("_plain").removesuffix("_blueprint"),
        backend,
        torch.empty(1, 64, 16, 16, device="cuda"),
    )
    if reason is not None:
        pytest.skip(reason)


@by_case
@by_backend
@pytest.mark.parametrize("size", (PATCHES, IMAGE), ids=("patches", "image"))
@pytest.mark.parametrize("dtype", (FLOAT, HALF, BFLOAT), ids=str)
def test_twice_rule(case: Callable[..., Case], size: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    skip_without(case, backend)
    with float32_precision("ieee"):
        assert_twice_rule(*case(size, dtype), backend)


@by_case
def test_cuda_and_triton_agree(case: Callable[..., Case]) -> None:
    """To a few roundings of float16 at the results' scale."""
    for name in BACKENDS:
        skip_without(case, name)
    function, inputs = case(IMAGE, HALF)
    inputs = [t.cuda() for t in inputs]
    for a, b in zip(*(results(function, inputs, name) for name in BACKENDS), strict=True):
        assert (a.double() - b.double()).abs().max() <= 16 * torch.finfo(HALF).eps * a.double().abs().max()


@by_case
@by_backend
def test_twenty_runs_are_bit_equal(case: Callable[..., Case], backend: str) -> None:
    """A race, or an order of summation that varies, would show."""
    skip_without(case, backend)
    function, inputs = case(IMAGE, HALF)
    inputs = [t.cuda() for t in inputs]
    first = results(function, inputs, backend)
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(first, results(function, inputs, backend), strict=True))


@by_case
@by_backend
def test_graph_replays_on_changed_inputs(case: Callable[..., Case], backend: str) -> None:
    skip_without(case, backend)
    function, inputs = case(IMAGE, HALF)
    assert_graph_replays(function, inputs, backend)


def test_more_elements_than_32_bits_count() -> None:
    """The last rows of an image of 2^31 elements and more are those of the rows alone."""
    skip_without(pointwise, "cuda")
    x = torch.empty(1, 64, 33_600, 1_001, dtype=HALF, device="cuda", memory_format=torch.channels_last).normal_()
    assert x.numel() > 2**31
    w, b = (t.cuda() for t in weights([(64, 64, 1, 1), (64,)], HALF))
    with torch.no_grad(), fastsr.backend("cuda"):
        assert torch.equal(ops.pointwise([x], w, b)[:, :, -16:], ops.pointwise([x[:, :, -16:]], w, b))
