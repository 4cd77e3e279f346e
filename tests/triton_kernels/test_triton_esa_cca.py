"""The Triton esa_cca, for inference, against float64."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernel_checks import LAYOUTS, assert_twice_rule, device_of, feature_map, moved, results, weight
from test_triton_esa import BLUEPRINT, PLAIN
from test_triton_esa import case as esa_case
from torch import Tensor

import fastsr
from fastsr import ops

DEVICE = device_of("triton")
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
# [N, C, H, W], inner channels, form, conv2_padding, with a norm
CASES = (
    ((2, 64, 21, 23), 16, BLUEPRINT, 1, True),
    ((1, 58, 15, 40), 16, PLAIN, 0, True),
    ((3, 10, 13, 13), 12, BLUEPRINT, 1, False),
)


def function(form: Any, padding: int) -> Any:
    count = len(form._fields)

    def call(x: Tensor, shortcut: Tensor, *rest: Tensor) -> Tensor:
        return ops.esa_cca(x, shortcut, form._make(rest[:count]), *rest[count:], conv2_padding=padding)

    return call


def case(
    shape: tuple[int, int, int, int],
    f: int,
    form: Any,
    norm: bool = True,
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
) -> list[Tensor]:
    c = shape[1]
    r = max(c // 16, 1)
    x, *weights = esa_case(shape, f, form, dtype, layout)
    attention = [weight(r, c, 1, 1, gain=3), weight(r, seed=1), weight(c, r, 1, 1, seed=2), weight(c, seed=3)]
    attention += [1 + weight(c, seed=4) / 4, weight(c, seed=5)] if norm else []
    return [x, feature_map(shape, layout, dtype, seed=1), *weights, *(p.to(dtype) for p in attention)]


@pytest.mark.parametrize("dtype", (FLOAT, HALF, BFLOAT), ids=str)
@pytest.mark.parametrize(("shape", "f", "form", "padding", "norm"), CASES)
def test_twice_rule(shape: Any, f: int, form: Any, padding: int, norm: bool, dtype: torch.dtype) -> None:
    assert_twice_rule(function(form, padding), case(shape, f, form, norm, dtype), "triton", gradients=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    inputs = case((2, 20, 16, 19), 8, BLUEPRINT, layout=layout)
    assert_twice_rule(function(BLUEPRINT, 1), inputs, "triton", gradients=False)


def test_several_tiles_in_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastsr.kernels import channel_attention

    monkeypatch.setattr(channel_attention, "MAX_PARTS", 4)
    assert_twice_rule(function(BLUEPRINT, 1), case((2, 8, 21, 37), 8, BLUEPRINT), "triton", gradients=False)


def test_a_large_offset_costs_no_accuracy() -> None:
    inputs = case((1, 16, 30, 25), 16, BLUEPRINT)
    inputs[0] += 1000
    assert_twice_rule(function(BLUEPRINT, 1), inputs, "triton", gradients=False)


def test_it_is_five_launches_and_with_autograd_the_two_operators() -> None:
    from fastsr.kernels import launch

    started: list[str] = []
    original = launch._run

    def run(kernel: Any, *arguments: Any) -> None:
        started.append(f"{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}")
        original(kernel, *arguments)

    inputs = [moved(t, DEVICE) for t in case((1, 8, 13, 14), 8, BLUEPRINT)]
    with patch.object(launch, "_run", run):
        fused = results(function(BLUEPRINT, 1), inputs, "triton", gradients=False)[0]
        assert len(started) == 5 and started[2] == "esa_cca.gate_kernel"
        started.clear()
        apart = results(function(BLUEPRINT, 1), inputs, "triton")[0]
    assert "esa.gate_kernel" in started and "cca_norm.moments_kernel" in started
    torch.testing.assert_close(fused, apart, rtol=0, atol=1e-5)


def test_repeatable() -> None:
    inputs = [moved(t, DEVICE) for t in case((2, 8, 13, 30), 8, BLUEPRINT)]
    first, again = (results(function(BLUEPRINT, 1), inputs, "triton", gradients=False)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_nan_stays_in_its_image() -> None:
    inputs = [moved(t, DEVICE) for t in case((2, 16, 16, 17), 8, BLUEPRINT)]
    inputs[0][1, 3, 2, 2] = torch.nan
    y = results(function(BLUEPRINT, 1), inputs, "triton", gradients=False)[0]
    assert y[0].isfinite().all() and y[1].isnan().all()


def test_empty() -> None:
    inputs = [moved(t, DEVICE) for t in case((0, 8, 16, 16), 8, BLUEPRINT)]
    assert results(function(BLUEPRINT, 1), inputs, "triton", gradients=False)[0].shape == (0, 8, 16, 16)


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_fake_and_layout(layout: str) -> None:
    x, shortcut, *rest = (moved(t, DEVICE) for t in case((1, 8, 13, 14), 8, BLUEPRINT, layout=layout))
    arguments = (x, shortcut, rest[:18], 1, *rest[18:], 1e-5)
    with fastsr.backend("triton"):
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.fastsr._triton_esa_cca.default, arguments, test_utils=checks)
