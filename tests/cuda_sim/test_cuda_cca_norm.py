"""cca_norm in CUDA C++ against float64: simulated, or on the GPU if there is one."""

from __future__ import annotations

import pytest
import simulator
import torch
from kernel_checks import LAYOUTS, assert_twice_rule, device_of, feature_map, moved, results, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import BackendError

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = device_of("cuda")
# The networks' channels, several parts of an image, lanes of every kind, sides below a step.
SHAPES = ((2, 64, 9, 13), (1, 64, 40, 50), (3, 46, 3, 5), (1, 5, 3, 40), (1, 100, 5, 7), (2, 200, 3, 4))


def case(
    shape: tuple[int, int, int, int], layout: str = "nhwc", dtype: torch.dtype = torch.float32, norm: bool = True
) -> list[Tensor]:
    c = shape[1]
    r = max(c // 16, 1)
    x = feature_map(shape, layout, dtype)
    if layout != "expanded":  # channels of different mean and spread, so that the statistics matter
        spread, mean = (torch.linspace(a, b, c).view(1, c, 1, 1) for a, b in ((0.5, 2), (-1, 1)))
        x.copy_(x.float() * spread + mean)
    parameters = [weight(r, c, 1, 1, gain=3), weight(r, seed=1), weight(c, r, 1, 1, seed=2), weight(c, seed=3)]
    parameters += [1 + weight(c, seed=4) / 4, weight(c, seed=5)] if norm else []
    return [x, feature_map(shape, layout, dtype, seed=1), *(p.to(dtype) for p in parameters)]


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "norm"), [*((s, True) for s in SHAPES), (SHAPES[0], False)], ids=str)
def test_twice_rule(shape: tuple[int, int, int, int], norm: bool, dtype: torch.dtype) -> None:
    assert_twice_rule(ops.cca_norm, case(shape, dtype=dtype, norm=norm), "cuda")


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    assert_twice_rule(ops.cca_norm, case((2, 24, 3, 11), layout, dtype), "cuda")


def test_more_images_than_parts() -> None:
    assert_twice_rule(ops.cca_norm, case((300, 4, 2, 3)), "cuda")


def test_a_constant_map_has_the_gradient_of_the_reference() -> None:
    inputs = case((2, 16, 9, 11))
    inputs[0][:, ::2] = 0.1  # in float32, many 0.1 do not add up exactly
    assert_twice_rule(ops.cca_norm, inputs, "cuda")


def test_a_single_pixel() -> None:
    assert_twice_rule(ops.cca_norm, case((2, 64, 1, 1)), "cuda")


def test_a_large_offset_costs_no_accuracy() -> None:
    inputs = case((1, 16, 20, 25))
    inputs[0] += 1000
    assert_twice_rule(ops.cca_norm, inputs, "cuda")


def test_float16_sums_do_not_overflow() -> None:
    inputs = case((1, 16, 64, 64), dtype=HALF)
    inputs[0] += 50  # a plain float16 sum over the map would be infinite
    with fastsr.backend("cuda"):
        assert ops.cca_norm(*on_device(inputs)).isfinite().all()


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("channels", (20, 40, 100, 200))
def test_repeats_are_bit_equal_whatever_the_order_of_threads(channels: int, dtype: torch.dtype) -> None:
    inputs = on_device(case((2, channels, 9, 11), dtype=dtype))
    first = results(ops.cca_norm, inputs, "cuda")
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, results(ops.cca_norm, inputs, "cuda"), strict=True))
    finally:
        simulator.seed = 0


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 8, 4, 0)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    leaves = on_device([t.clone() for t in case((1, 8, 1, 1))])
    leaves[0], leaves[1] = (torch.empty(shape, device=DEVICE) for _ in range(2))
    leaves = [t.requires_grad_() for t in leaves]
    with fastsr.backend("cuda"):
        ops.cca_norm(*leaves).sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in leaves)


def test_nan_stays_in_its_image() -> None:
    inputs = on_device(case((2, 16, 6, 7)))
    inputs[0][1, 3, 2, 2] = torch.nan
    with fastsr.backend("cuda"):
        y = ops.cca_norm(*inputs)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()  # through the statistics of channel 3, all channels; through the norm, all pixels


def test_float32_parameters_beside_a_half_map() -> None:
    """As under autocast: gradients of the parameters are float32."""
    x, shortcut, *parameters = on_device(case((1, 16, 6, 7)))
    leaves = [x.half().requires_grad_(), shortcut.half().requires_grad_(), *(p.requires_grad_() for p in parameters)]
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF):
        y = ops.cca_norm(*leaves)
        gradients = torch.autograd.grad(y.sum(), leaves)
    assert y.dtype == gradients[0].dtype == HALF
    assert all(g.dtype == FLOAT and g.isfinite().all() for g in gradients[2:])


def test_too_many_channels_are_an_error() -> None:
    with fastsr.backend("cuda"), pytest.raises(BackendError, match="300 channels exceed 256"):
        ops.cca_norm(*on_device(case((1, 300, 2, 2))))


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
def test_opcheck(norm: bool) -> None:
    inputs = on_device(case((2, 8, 4, 5), norm=norm))
    none = [None] * (0 if norm else 2)
    tests = ("test_schema", "test_faketensor")
    with fastsr.backend("cuda"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        torch.library.opcheck(torch.ops.fastsr.cca_norm.default, (*leaves, *none, 1e-5))
        statistics = torch.ops.fastsr.cca_norm(*inputs, *none, 1e-5)[1]
        arguments = (inputs[1], inputs[0], statistics, *inputs[2:6], inputs[6] if norm else None, 1e-5)
        torch.library.opcheck(torch.ops.fastsr.cca_norm_backward.default, arguments, test_utils=tests)
