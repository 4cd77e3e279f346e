"""bsconv, conv3x3_gelu, conv_mix, upsample and esa on a GPU at real sizes, by every backend. `pytest tests/gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from kernel_checks import assert_graph_replays, assert_twice_rule, feature_map, float32_precision, results, weight
from tf32_convolutions import assert_twice_rule as assert_twice
from tf32_convolutions import convolutions_in_tf32
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.ops import BlueprintESAWeights, PlainESAWeights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
PATCHES, IMAGE = (16, 48, 48), (1, 181, 317)  # n, h, w: a training batch, and an image of odd sizes
Case = tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Tensor]]


def maps(size: tuple[int, int, int], channels: int, dtype: torch.dtype, count: int = 1) -> list[Tensor]:
    n, h, w = size
    return [feature_map((n, channels, h, w), "nhwc", dtype, seed=seed) for seed in range(count)]


def weights(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    return [weight(*s, seed=i, gain=0.3 if len(s) == 1 else 1.0, dtype=dtype) for i, s in enumerate(shapes)]


def conv3x3_gelu(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    return ops.conv3x3_gelu, [*maps(size, 58, dtype), *weights([(58, 58, 3, 3), (58,)], dtype)]


def conv_mix(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    shapes = [(58, 1, 3, 3), (58,), (58, 58, 1, 1), (58,), (58, 58, 1, 1), (58,)]
    return ops.conv_mix, [*maps(size, 58, dtype, 2), *weights(shapes, dtype)]


def bsconv(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    """BSRN's refining half of a stage."""
    inputs = [*maps(size, 64, dtype), *weights([(64, 64, 1, 1), (64, 1, 3, 3), (64,)], dtype)]
    return lambda x, *w: ops.bsconv(x, *w, shortcut=x, activation="gelu"), inputs


def bsconv_stage(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    """In Triton its two operators."""
    shapes = [(32, 64, 1, 1), (32,), (64, 64, 1, 1), (64, 1, 3, 3), (64,)]
    return ops.bsconv_stage, [*maps(size, 64, dtype), *weights(shapes, dtype)]


def upsample(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    inputs = [*maps(size, 64, dtype), *weights([(12, 64, 3, 3), (12,)], dtype), *maps(size, 3, dtype)]
    return lambda *tensors: ops.upsample(*tensors, scale=2, residual="bilinear"), inputs


def esa_plain(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    shapes = [(16, 58, 1, 1), (16,), *([(16, 16, 3, 3), (16,)] * 2), (16, 16, 1, 1), (16,), (58, 16, 1, 1), (58,)]
    return lambda x, *w: ops.esa(x, PlainESAWeights(*w)), [*maps(size, 58, dtype), *weights(shapes, dtype)]


def esa_blueprint(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    small = [(16, 16, 1, 1), (16, 1, 3, 3), (16,)] * 4
    shapes = [(16, 64, 1, 1), (16,), *small, (16, 16, 1, 1), (16,), (64, 16, 1, 1), (64,)]
    inputs = [*maps(size, 64, dtype), *weights(shapes, dtype)]
    return lambda x, *w: ops.esa(x, BlueprintESAWeights(*w), conv2_padding=1), inputs


ESA = (esa_plain, esa_blueprint)
CASES = (bsconv, bsconv_stage, conv3x3_gelu, conv_mix, upsample, *ESA)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


@pytest.fixture(params=("cuda", "triton"))
def backend(request: pytest.FixtureRequest) -> str:
    """Skips where the backend has no kernels for the case."""
    op = request.getfixturevalue("case").__name__.split("_plain")[0].split("_blueprint")[0].split("_stage")[0]
    reason = fastsr.can_run(op, request.param, torch.empty(1, 58, 8, 8, device="cuda"))
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(params=("ieee", "tf32"))
def float32_products(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways in which PyTorch's convolutions multiply float32, for plain PyTorch and the kernels alike."""
    with float32_precision(request.param):
        yield request.param


@by_case
@pytest.mark.parametrize("size", (PATCHES, IMAGE), ids=("patches", "image"))
@pytest.mark.parametrize("dtype", (HALF, BFLOAT), ids=str)
def test_twice_rule(case: Callable[..., Case], size: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    assert_twice_rule(*case(size, dtype), backend)


@by_case
@pytest.mark.parametrize("size", (PATCHES, IMAGE), ids=("patches", "image"))
def test_twice_rule_in_float32(
    case: Callable[..., Case], size: tuple[int, int, int], float32_products: str, backend: str
) -> None:
    if (case in ESA, float32_products, backend) == (True, "tf32", "cuda"):
        pytest.skip("its blueprint form rounds other weights than PyTorch; test_esa_in_tf32")
    assert_twice_rule(*case(size, FLOAT), backend)


@pytest.mark.parametrize("case", ESA, ids=lambda case: case.__name__)
@pytest.mark.parametrize("size", ((16, 40, 56), IMAGE), ids=("patches", "image"))
def test_esa_in_tf32(case: Callable[..., Case], size: tuple[int, int, int]) -> None:
    """Beside PyTorch whose convolutions all round. In the simulator these keep within 0.8 of what is allowed."""
    reason = fastsr.can_run("esa", "cuda", torch.empty(1, 58, 16, 16, device="cuda"))
    if reason is not None:
        pytest.skip(reason)
    function, inputs = case(size, FLOAT)
    inputs = [t.cuda() for t in inputs]
    exact = results(function, [t.double() for t in inputs], "reference")
    with convolutions_in_tf32():
        plain = results(function, [t.double() for t in inputs], "reference")
    with float32_precision("tf32"):
        assert_twice(results(function, inputs, "cuda"), exact, plain)


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


@pytest.mark.parametrize("size", (PATCHES, IMAGE), ids=("patches", "image"))
@pytest.mark.parametrize("dtype", (FLOAT, HALF, BFLOAT), ids=str)
def test_the_fused_stage_agrees_with_its_parts(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    """To a few roundings: BSRN's stage in one operator, and as pointwise and bsconv."""
    reason = fastsr.can_run("bsconv", "cuda", torch.empty(1, 64, 8, 8, device="cuda", dtype=dtype))
    if reason is not None:
        pytest.skip(reason)

    def in_parts(x: Tensor, dw: Tensor, db: Tensor, *w: Tensor) -> tuple[Tensor, Tensor]:
        return ops.pointwise((x,), dw, db, activation="gelu"), ops.bsconv(x, *w, shortcut=x, activation="gelu")

    function, tensors = bsconv_stage(size, dtype)
    tensors = [t.cuda() for t in tensors]
    with float32_precision("ieee"):
        fused, parts = results(function, tensors, "cuda"), results(in_parts, tensors, "cuda")
    for a, b in zip(fused, parts, strict=True):
        assert (a.double() - b.double()).abs().max() <= 16 * torch.finfo(dtype).eps * b.double().abs().max()


@pytest.mark.parametrize("case", (conv3x3_gelu,), ids=lambda case: case.__name__)
def test_more_elements_than_32_bits_count(case: Callable[..., Case], backend: str) -> None:
    """The last rows of an image of 2^31 elements and more are those of the rows alone."""
    rows, columns = 33_600, 1_001
    x = torch.empty(1, 64, rows, columns, dtype=HALF, device="cuda", memory_format=torch.channels_last)
    assert x.numel() > 2**31
    x.normal_()
    w, b = weight(64, 64, 3, 3, dtype=HALF).cuda(), weight(64, dtype=HALF).cuda()
    with torch.no_grad(), fastsr.backend(backend):
        end = ops.conv3x3_gelu(x, w, b)[:, :, -20:]
        alone = ops.conv3x3_gelu(x[:, :, -21:], w, b)[:, :, 1:]
    assert torch.equal(end, alone)
