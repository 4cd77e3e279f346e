"""alk_conv and alk_stage with their depthwise convolutions as products with banded matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernel_checks import assert_repeatable, assert_twice_rule, device_of, feature_map, moved, results
from test_triton_alk import conv, stage, stage_inputs, weights
from torch import Tensor

import fastsr

pytest.importorskip("triton")
from fastsr.kernels import alk_conv, alk_conv_backward, alk_toeplitz, alk_toeplitz_backward, launch

DEVICE = device_of("triton")
HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _toeplitz_only() -> Iterator[list[str]]:
    """Takes the form wherever it can run, and yields the names of the kernels that were started."""
    started: list[str] = []
    original = launch._run

    def run(kernel: Any, *arguments: Any) -> None:
        started.append(f"{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}")
        original(kernel, *arguments)

    def here(x: Tensor, channels: int, taps: int, kernel: str = "") -> dict[str, int] | None:
        if x.dtype == torch.float32 or taps > alk_toeplitz.MAX_TAPS:
            return None
        return {"BC": 16, "num_warps": 8, "num_stages": 1}

    modules = (alk_conv, alk_conv_backward)
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch.object(module, "toeplitz_tile", here))
        stack.enter_context(patch.object(launch, "_run", run))
        yield started


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    ("shape", "d", "taps"), [((1, 64, 18, 35), 32, 9), ((2, 20, 3, 16), 13, 5), ((1, 3, 33, 2), 3, 1)], ids=str
)
def test_stage_twice_rule(dtype: torch.dtype, shape, d: int, taps: int, _toeplitz_only: list[str]) -> None:
    assert_twice_rule(stage, stage_inputs(shape, d, taps, dtype), "triton")
    started = set(_toeplitz_only)
    assert {"alk_toeplitz.mix_kernel", "alk_toeplitz_backward.transpose_kernel"} <= started
    assert not started & {"alk_conv.mix_kernel", "alk_conv_backward.transpose_kernel"}
    assert "depthwise.depthwise_weight_gradient_kernel" not in started


def test_several_tiles_in_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (alk_conv_backward, alk_toeplitz_backward):
        monkeypatch.setattr(module, "MAX_PARTS", 2)
    assert_twice_rule(stage, stage_inputs((2, 16, 18, 35), 8, 7, torch.float16), "triton")


def test_repeatable() -> None:
    assert_repeatable(stage, stage_inputs((1, 16, 18, 17), 8, 5, torch.float16), "triton")


@pytest.mark.parametrize("taps", [3, 7, 11, 13, 15, 17])
def test_every_kernel_size(taps: int) -> None:
    inputs = [feature_map((1, 8, 19, 22), "nhwc", torch.float16), *weights(8, 58 if taps == 17 else 8, taps)]
    assert_twice_rule(conv("gelu"), [t.half() for t in inputs], "triton")


@pytest.mark.parametrize("layout", ["nchw", "channel_slice", "pixel_slice"])
def test_layouts(layout: str) -> None:
    assert_twice_rule(stage, stage_inputs((2, 16, 5, 17), 8, 3, torch.bfloat16, layout), "triton")


def test_float32_weights_are_rounded_to_the_maps_dtype() -> None:
    """As under autocast."""
    x, *w = (moved(t, DEVICE) for t in stage_inputs((1, 16, 4, 5), 8, 5))
    with torch.no_grad(), fastsr.backend("triton"), torch.autocast(DEVICE, dtype=torch.float16):
        mixed = stage(x.half(), *w)
    with torch.no_grad(), fastsr.backend("triton"):
        rounded = stage(x.half(), *(t.half() for t in w))
    for a, b in zip(mixed, rounded, strict=True):
        assert (a - b).abs().max() <= 4 * torch.finfo(torch.float16).eps * b.abs().max()


def test_nothing_unwritten_is_read() -> None:
    """Rows of planar maps are padded to 16 pixels; fresh memory holds NaN in torch's deterministic mode."""
    inputs = [moved(t, DEVICE) for t in stage_inputs((1, 20, 5, 17), 8, 9, torch.float16)]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(1, device=DEVICE).isnan()
        assert all(out.isfinite().all() for out in results(stage, inputs, "triton"))
    finally:
        torch.use_deterministic_algorithms(before)


def test_nan_stays_within_the_halo() -> None:
    """It spreads further than the filters reach, since zeros of the matrices are multiplied by it."""
    inputs = [moved(t, DEVICE) for t in stage_inputs((1, 4, 40, 41), 4, 5, torch.float16)]
    inputs[0][0, 1, 20, 20] = torch.nan
    with torch.no_grad(), fastsr.backend("triton"):
        _, refined = stage(*inputs)
    bad = refined.isnan().any(1)[0].nonzero()
    assert (bad - 20).abs().max() <= 16 + 8
    assert bad.shape[0] >= 9 + 8  # the 3 x 3 and two arms of 5


@pytest.mark.parametrize(
    ("architecture", "dtype", "channels", "taps", "size", "runs"),
    [
        ("sm_80", torch.float16, 64, 9, 360, True),
        ("sm_90", torch.bfloat16, 58, 17, 360, True),
        ("sm_100", torch.float16, 32, 3, 360, True),
        ("sm_120", torch.float16, 64, 9, 360, False),
        ("sm_90", torch.float32, 64, 9, 360, False),
        ("sm_90", torch.float16, 65, 9, 360, False),
        ("sm_90", torch.float16, 64, 19, 360, False),
        ("sm_90", torch.float16, 64, 9, 6000, False),
    ],
)
@pytest.mark.parametrize("kernel", ["alk_toeplitz", "alk_toeplitz_transpose"])
def test_where_the_tables_choose_it(
    kernel: str, architecture: str, dtype: torch.dtype, channels: int, taps: int, size: int, runs: bool
) -> None:
    import json

    from fastsr.kernels import config

    own, default = config.FOLDER / f"{architecture}.json", config.FOLDER / "default.json"
    entries = json.loads((own if own.exists() else default).read_text())["kernels"][kernel]
    x = torch.empty(1, 8, size, size, dtype=dtype, device="meta")
    with patch.object(alk_toeplitz, "tile", lambda *_, **__: dict(entries[0]["tile"])):
        found = alk_toeplitz.toeplitz_tile(x, channels, taps, kernel)
    assert (found is not None) == runs
    assert found is None or "MOST" not in found
