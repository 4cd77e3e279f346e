"""Maps of more than 2^31 elements: offsets beyond 32 bits. Many gigabytes and seconds, so only run with `-m large`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from kernel_checks import FLOOR_EPSILONS
from operator_cases import build
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.ops import ALKConvWeights, BlueprintESAWeights

pytestmark = [pytest.mark.large, pytest.mark.usefixtures("cpu_kernels")]

NEEDED_GIB = 14
PERIOD = 100  # the map repeats a tile of this many pixels both ways, so its statistics are the tile's
CHANNELS, SIZE = 16, 117 * PERIOD
CORNER, HALO = PERIOD, 16  # what is compared lies at the end of the map, where all offsets exceed 2^31


def available_gib() -> float | None:
    """Memory that can be had without swapping, or None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:")), None)


def periodic(channels: int, size: int, period: int) -> Tensor:
    """A bfloat16 map [1, channels, size, size], channels last, that repeats a random tile."""
    tile = torch.randn(period, 1, period, channels).bfloat16()
    x = torch.empty(size // period, period, size // period, period, channels, dtype=torch.bfloat16)
    x.copy_(tile.expand(size // period, period, size // period, period, channels))
    return x.view(1, size, size, channels).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def large() -> Iterator[Tensor]:
    available = available_gib()
    if available is None or available < NEEDED_GIB:
        have = "unknown" if available is None else f"{available:.0f} GiB"
        pytest.skip(f"needs {NEEDED_GIB} GiB of available memory, which is {have}")
    x = periodic(CHANNELS, SIZE, PERIOD)
    assert x[..., : SIZE - CORNER, :].numel() > 2**31
    yield x


# Weights come from the operators' usual cases; every second map is the first one, to save memory.
OPERATORS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "alk_conv": lambda x, w: ops.alk_conv(x, ALKConvWeights._make(w)),
    "alk_stage": lambda x, w: ops.alk_stage(x, w[0], w[1], ALKConvWeights._make(w[2:])),
    "bsconv": lambda x, w: ops.bsconv(x, *w, shortcut=x, activation="gelu"),
    "conv3x3_gelu": lambda x, w: ops.conv3x3_gelu(x, *w, shortcut=x),
    "conv_mix": lambda x, w: ops.conv_mix(x, x, *w),
    "pixel_norm": lambda x, w: ops.pixel_norm(x, *w),
    "pointwise": lambda x, w: ops.pointwise((x, x[:, :5]), *w),
    "upsample": lambda x, w: ops.upsample(x, *w, x[:, :3], scale=2, residual="anchor"),
}


def results(function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], x: Tensor, backend: str) -> tuple[Tensor, ...]:
    with torch.no_grad(), fastsr.backend(backend):
        out = function(x)
    return out if isinstance(out, tuple) else (out,)


def assert_twice_rule_of(exact: Tensor, plain: Tensor, kernel: Tensor) -> None:
    floor = FLOOR_EPSILONS * torch.finfo(kernel.dtype).eps * exact.abs().max().item()
    allowed = 2 * (plain.double() - exact).abs().max().item() + floor
    error = (kernel.double() - exact).abs().max().item()
    assert error <= allowed, f"error {error:.3e} exceeds {allowed:.3e}"


def weights_of(name: str, dtype: torch.dtype) -> list[Tensor]:
    case = build(name, (1, CHANNELS, 16, 16), dtype=torch.bfloat16)
    return [t.to(dtype) for key, t in case.tensors.items() if key not in case.maps]


@pytest.mark.parametrize("name", OPERATORS)
def test_the_end_of_the_map(large: Tensor, name: str) -> None:
    function, half = OPERATORS[name], weights_of(name, torch.bfloat16)
    double = [w.double() for w in half]
    part = large[..., -CORNER - HALO :, -CORNER - HALO :]
    exact = results(lambda x: function(x, double), part.double(), "reference")
    plain = results(lambda x: function(x, half), part, "reference")
    kernel = results(lambda x: function(x, half), large, "cpu")
    for e, p, k in zip(exact, plain, kernel, strict=True):
        corner = CORNER * k.shape[-1] // SIZE  # in pixels of the result
        assert_twice_rule_of(*(t[..., -corner:, -corner:] for t in (e, p, k)))


def test_statistics_of_the_whole_map(large: Tensor) -> None:
    """cca_norm of the map is that of one tile, repeated."""
    half = weights_of("cca_norm", torch.bfloat16)
    tile = large[..., :PERIOD, :PERIOD]
    exact = results(lambda x: ops.cca_norm(x, x, *(w.double() for w in half)), tile.double(), "reference")[0]
    plain = results(lambda x: ops.cca_norm(x, x, *half), tile, "reference")[0]
    kernel = results(lambda x: ops.cca_norm(x, x, *half), large, "cpu")[0]
    assert_twice_rule_of(exact, plain, kernel[..., -PERIOD:, -PERIOD:])


def test_backward_of_pixel_norm(large: Tensor) -> None:
    half = weights_of("pixel_norm", torch.bfloat16)
    dx, d_weight, d_bias = torch.ops.fastsr.pixel_norm_backward(large, large, half[0], 1e-6)
    tile = large[..., -PERIOD:, -PERIOD:].contiguous(memory_format=torch.channels_last)
    alone = torch.ops.fastsr.pixel_norm_backward(tile, tile, half[0], 1e-6)
    assert torch.equal(dx[..., -PERIOD:, -PERIOD:], alone[0])
    tiles = (SIZE // PERIOD) ** 2
    for of_all, of_tile in ((d_weight, alone[1]), (d_bias, alone[2])):
        torch.testing.assert_close(of_all.float() / tiles, of_tile.float(), rtol=2**-7, atol=1e-3 * PERIOD)


def test_gate_of_a_large_map(large: Tensor) -> None:
    """esa of a map of constant channels: far from its borders the gate is that of any such map."""
    del large  # only for its check of the memory
    channels, size, margin = 64, 5900, 64
    case = build("esa_blueprint", (1, channels, 16, 16), dtype=torch.bfloat16)
    weights = [t for key, t in case.tensors.items() if key not in case.maps]
    colour = torch.randn(1, channels, 1, 1).bfloat16()

    def gated(extent: int, dtype: torch.dtype, backend: str) -> Tensor:
        x = torch.empty(1, channels, extent, extent, dtype=dtype, memory_format=torch.channels_last)
        x.copy_(colour.to(dtype).expand_as(x))
        values = BlueprintESAWeights._make(w.to(dtype) for w in weights)
        y = results(lambda x: ops.esa(x, values, conv2_padding=1), x, backend)[0]
        assert extent < size or y[..., : extent - margin, :].numel() > 2**31
        return y[..., -margin - 1, -margin - 1]

    exact, plain = gated(200, torch.float64, "reference"), gated(200, torch.bfloat16, "reference")
    assert_twice_rule_of(exact, plain, gated(size, torch.bfloat16, "cpu"))
