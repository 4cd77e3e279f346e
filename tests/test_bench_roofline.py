"""The roofline model against counts by hand: bytes, multiply-adds, instructions, floors."""

from __future__ import annotations

import pytest

import fastsr
from fastsr.bench.cases import make_case
from fastsr.bench.registry import load_registry
from fastsr.bench.roofline import INSTRUCTIONS, Work, count

PIXELS = 2 * 16 * 20  # of the size below
GELU, NORM, SIGMOID = (INSTRUCTIONS[name] for name in ("gelu", "native_layer_norm", "sigmoid"))


def work(name: str, direction: str = "forward", dtype: str = "fp32", size: str = "2x20x16", group: str = "ops") -> Work:
    return count(make_case(load_registry(), group, name, size, dtype, "channels_last", direction))


def test_pixel_norm() -> None:
    found = work("pixel_norm")
    assert found == Work(4 * (2 * 64 * PIXELS + 2 * 64), 0, 0, NORM * 64 * PIXELS)
    assert work("pixel_norm", dtype="fp16").bytes == found.bytes // 2


def test_conv3x3_gelu() -> None:
    assert work("conv3x3_gelu") == Work(
        bytes=4 * (2 * 58 * PIXELS + 58 * 58 * 9 + 58),
        dense_macs=58 * 58 * 9 * PIXELS,
        depthwise_macs=0,
        instructions=GELU * 58 * PIXELS,
    )


def test_bsconv_counts_a_map_that_is_input_and_shortcut_once() -> None:
    assert work("bsconv") == Work(
        bytes=4 * (2 * 64 * PIXELS + 64 * 64 + 64 * 9 + 64),
        dense_macs=64 * 64 * PIXELS,
        depthwise_macs=64 * 9 * PIXELS,
        instructions=(GELU + 1) * 64 * PIXELS,
    )


def test_alk_stage() -> None:
    weights = (64 * 64) + 64 * (9 + 9 + 9) + 3 * 64 + 2 * 64 + (32 * 64 + 32)
    assert work("alk_stage") == Work(
        bytes=4 * ((64 + 64 + 32) * PIXELS + weights),
        dense_macs=(64 * 64 + 64 * 32) * PIXELS,
        depthwise_macs=64 * (9 + 9 + 9) * PIXELS,
        # three branches with GELU and their two sums, the norm, the residual, GELU of both results
        instructions=(64 * (3 * GELU + 2 + NORM + 1 + GELU) + 32 * GELU) * PIXELS,
    )


def test_conv_mix() -> None:
    assert work("conv_mix") == Work(
        bytes=4 * (3 * 58 * PIXELS + 9 * 58 + 2 * 58 * 58 + 3 * 58),
        dense_macs=2 * 58 * 58 * PIXELS,
        depthwise_macs=9 * 58 * PIXELS,
        instructions=58 * (GELU + 1 + GELU + 1) * PIXELS,
    )


def test_pointwise_reads_every_map_and_no_concatenation() -> None:
    assert work("pointwise_c5") == Work(4 * ((128 + 64) * PIXELS + 128 * 64 + 64), 128 * 64 * PIXELS, 0, 0)


def test_upsample() -> None:
    found = work("upsample")
    assert found.dense_macs == 64 * 12 * 9 * PIXELS
    assert found.bytes == 4 * ((64 + 3 + 12) * PIXELS + 64 * 12 * 9 + 12)
    assert found.instructions == 12 * PIXELS


def test_esa_plain() -> None:
    low = (7, 9)  # a 3x3 of stride 2 without padding on 16 x 20
    pooled = (1, 1)
    found = work("esa_plain")
    assert found.dense_macs == 2 * (
        16 * 20 * (58 * 16 + 16 * 16 + 16 * 58) + low[0] * low[1] * 16 * 16 * 9 + pooled[0] * pooled[1] * 16 * 16 * 9
    )
    assert found.depthwise_macs == 0
    bilinear = INSTRUCTIONS["upsample_bilinear2d"]
    assert found.instructions == 2 * (16 * 20 * (16 * (bilinear + 1) + 58 * (SIGMOID + 1)) + 16 * 49)


def test_cca_norm_is_memory_and_little_else() -> None:
    found = work("cca_norm")
    assert found.dense_macs == 2 * 2 * 64 * 4
    assert found.bytes == 4 * (3 * 64 * PIXELS + 2 * 64 * 4 + 4 + 64 + 2 * 64)


@pytest.mark.parametrize("name", ["conv3x3_gelu", "bsconv", "conv_mix", "alk_stage", "pointwise_trunk"])
def test_a_backward_takes_two_products_for_each(name: str) -> None:
    forward, backward = work(name), work(name, "backward")
    assert (backward.dense_macs, backward.depthwise_macs) == (2 * forward.dense_macs, 2 * forward.depthwise_macs)
    assert work(name, "step").macs == 3 * forward.macs


def test_backward_bytes() -> None:
    """x, its gradient, the gradient that is given; weights and their gradients."""
    assert work("conv3x3_gelu", "backward").bytes == 4 * (3 * 58 * PIXELS + 2 * (58 * 58 * 9 + 58))


@pytest.mark.parametrize("name", ["alkdnet", "mlrn", "bsrn", "rlfn"])
def test_networks_agree_with_the_challenges_count(name: str) -> None:
    found = work(name, size="32x32", group="models")
    assert found.macs == fastsr.complexity(fastsr.create_model(name, scale=2), 32, 32).macs


def test_floors() -> None:
    amount = Work(bytes=2_000_000, dense_macs=3_000_000, depthwise_macs=500_000, instructions=500_000)
    assert amount.floor({"copy_gbs": 1.0, "fma_gflops": 1000.0}, "fp32") == (2.0, "memory")
    assert amount.floor({"copy_gbs": 1000.0, "fma_gflops": 2.0}, "fp32") == (4.0, "instructions")
    gpu = {"copy_gbs": 1000.0, "fma_gflops": 200.0, "matrix_fp16_gflops": 6.0}
    assert amount.floor(gpu, "fp16") == (1.0, "matrix")
    assert amount.floor({**gpu, "fma_gflops": 0.5}, "fp16") == (4.0, "instructions")
    assert amount.floor({"copy_gbs": 1.0, "fma_gflops": None}, "fp32") is None
