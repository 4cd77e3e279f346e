"""The Triton cca_norm against float64, and through the frame."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, device_of, feature_map, moved, weight
from torch import Tensor

import fastsr
from fastsr import ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = device_of("triton")
SHAPES = ((2, 64, 9, 13), (3, 46, 3, 5), (1, 5, 3, 40))


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "norm"), [*((s, True) for s in SHAPES), (SHAPES[0], False)], ids=str)
def test_twice_rule(shape: tuple[int, int, int, int], norm: bool, dtype: torch.dtype) -> None:
    assert_twice_rule(ops.cca_norm, case(shape, dtype=dtype, norm=norm), "triton")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    assert_twice_rule(ops.cca_norm, case((2, 24, 3, 11), layout), "triton")


def test_several_tiles_in_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastsr.kernels import channel_attention

    monkeypatch.setattr(channel_attention, "MAX_PARTS", 4)
    assert_twice_rule(ops.cca_norm, case((2, 16, 9, 37)), "triton")


def test_a_constant_map_has_the_gradient_of_the_reference() -> None:
    inputs = case((2, 16, 9, 11))
    inputs[0][:, ::2] = 0.1  # in float32, many 0.1 do not add up exactly
    assert_twice_rule(ops.cca_norm, inputs, "triton")


def test_a_single_pixel() -> None:
    assert_twice_rule(ops.cca_norm, case((2, 64, 1, 1)), "triton")


def test_a_large_offset_costs_no_accuracy() -> None:
    inputs = case((1, 16, 20, 25))
    inputs[0] += 1000
    assert_twice_rule(ops.cca_norm, inputs, "triton")


def test_float16_sums_do_not_overflow() -> None:
    inputs = case((1, 16, 64, 64), dtype=torch.float16)
    inputs[0] += 50  # a plain float16 sum over the map would be infinite
    with fastsr.backend("triton"):
        assert ops.cca_norm(*(moved(t, DEVICE) for t in inputs)).isfinite().all()


def test_repeatable() -> None:
    assert_repeatable(ops.cca_norm, case((2, 20, 9, 11)), "triton")


def test_empty() -> None:
    leaves = [moved(t, DEVICE).requires_grad_() for t in case((0, 8, 4, 4))]
    with fastsr.backend("triton"):
        ops.cca_norm(*leaves).sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in leaves)


def test_nan_stays_in_its_image() -> None:
    inputs = [moved(t, DEVICE) for t in case((2, 16, 6, 7))]
    inputs[0][1, 3, 2, 2] = torch.nan
    with fastsr.backend("triton"):
        y = ops.cca_norm(*inputs)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()  # through the statistics of channel 3, all channels; through the norm, all pixels


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
def test_opcheck(norm: bool) -> None:
    inputs = [moved(t, DEVICE) for t in case((2, 8, 4, 5), norm=norm)]
    none = [None] * (0 if norm else 2)
    tests = ("test_schema", "test_faketensor")
    with fastsr.backend("triton"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        torch.library.opcheck(torch.ops.fastsr.cca_norm.default, (*leaves, *none, 1e-5))
        statistics = torch.ops.fastsr.cca_norm(*inputs, *none, 1e-5)[1]
        arguments = (inputs[1], inputs[0], statistics, *inputs[2:6], inputs[6] if norm else None, 1e-5)
        torch.library.opcheck(torch.ops.fastsr.cca_norm_backward.default, arguments, test_utils=tests)
