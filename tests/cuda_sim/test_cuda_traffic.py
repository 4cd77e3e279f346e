"""Loads and stores of maps by their width, and Toeplitz products, of the simulated kernels as they run."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from network_cases import CALLS, CASES, WHOLE_TILES, Case, by_kernel, counts, step
from test_cuda_alk import conv, conv_inputs
from test_cuda_launches import simulated_only
from traffic_counts import counted, share

import fastsr

pytestmark = [pytest.mark.usefixtures("cuda_kernels"), simulated_only]

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
LEAST = 0.9  # of a kernel's loads and stores of maps


class Narrow(NamedTuple):
    """Kernels below LEAST in float16, with their share of accesses of 128 bits, and why it is no more."""

    reason: str
    shares: dict[str, float]


ODD = "a pixel of 58 or 52 channels is no multiple of 16 bytes: two channels are taken at a time"
IMAGE = "an image has three channels"
QUADS = "of the 16 channels that a product is deep a lane holds four, 8 bytes: so conv2 reads c1, and so c1 is written"
SMALL = "small maps of float32, a 36th of the pixels, number by number"
NARROW = {
    "esa forward": Narrow(QUADS, {"esa_small_kernel": 0.007}),
    "esa backward": Narrow(
        f"{QUADS}; {SMALL}",
        {
            "esa_small_kernel": 0.021,
            "esa_small_backward_kernel": 0.0,
            "esa_pool_backward_kernel": 0.667,
        },
    ),
    "esa of 58 forward": Narrow(
        f"{ODD}; {QUADS}", {"esa_reduce_kernel": 0.065, "esa_small_kernel": 0.004, "esa_gate_kernel": 0.237}
    ),
    "esa of 58 backward": Narrow(
        f"{ODD}; {QUADS}; {SMALL}",
        {
            "esa_reduce_kernel": 0.065,
            "esa_small_kernel": 0.004,
            "esa_gate_backward_kernel": 0.246,
            "esa_small_backward_kernel": 0.0,
            "esa_pool_backward_kernel": 0.758,
            "esa_input_backward_kernel": 0.121,
            "weight_gradient_kernel": 0.425,
        },
    ),
    "esa_cca forward": Narrow(QUADS, {"esa_small_kernel": 0.007}),
    "conv_mix of 58 forward": Narrow(ODD, {"conv_mix_kernel": 0.0}),
    "conv_mix of 58 backward": Narrow(
        ODD, {"conv_mix_backward_kernel": 0.173, "conv_mix_input_kernel": 0.104, "filter_gradient_kernel": 0.453}
    ),
    "conv_mix_reduce of 58 forward": Narrow(f"{ODD}; {QUADS}", {"conv_mix_kernel": 0.0}),
    "conv_mix_reduce of 64 forward": Narrow(QUADS, {"conv_mix_kernel": 0.867}),
    "conv3x3_gelu of 58 forward": Narrow(ODD, {"conv3x3_kernel": 0.0}),
    "conv3x3_gelu of 58 backward": Narrow(ODD, {"conv3x3_kernel": 0.074, "filter_gradient_kernel": 0.210}),
    "conv3x3_gelu of 52 forward": Narrow(ODD, {"conv3x3_kernel": 0.0}),
    "conv3x3_gelu of 52 backward": Narrow(ODD, {"conv3x3_kernel": 0.073, "filter_gradient_kernel": 0.206}),
    "conv3x3_gelu of 3 forward": Narrow(f"{IMAGE}; {ODD}", {"conv3x3_kernel": 0.0}),
    "conv3x3_gelu of 3 backward": Narrow(f"{IMAGE}; {ODD}", {"conv3x3_kernel": 0.0, "filter_gradient_kernel": 0.0}),
    "bsconv of 3 forward": Narrow(IMAGE, {"bsconv_kernel": 0.679}),
    "bsconv of 3 backward": Narrow(IMAGE, {"bsconv_filters_kernel": 0.679, "bsconv_input_kernel": 0.627}),
    "pointwise of 58 forward": Narrow(ODD, {"product_kernel": 0.0}),
    "pointwise of 58 backward": Narrow(ODD, {"product_kernel": 0.0, "weight_gradient_kernel": 0.0}),
    "pointwise_reduce of 52 forward": Narrow(ODD, {"pointwise_reduce_kernel": 0.037}),
    "upsample forward": Narrow(IMAGE, {"upsample_kernel": 0.040}),
    "upsample backward": Narrow(IMAGE, {"unshuffle_kernel": 0.0, "lr_gradient_kernel": 0.0}),
}


calls = pytest.mark.parametrize(("name", "direction"), CALLS)


def shares(name: str, direction: str, dtype: torch.dtype) -> dict[str, float]:
    return by_kernel(counts(name, dtype).kernels(direction), share)


@calls
def test_maps_are_accessed_by_128_bits(name: str, direction: str) -> None:
    found = shares(name, direction, HALF)
    narrow = {kernel: round(wide, 3) for kernel, wide in found.items() if wide < LEAST}
    assert found and narrow == NARROW.get(f"{name} {direction}", Narrow("", {})).shares


def test_the_table_is_of_calls_that_there_are() -> None:
    assert set(NARROW) <= {" ".join(call) for call in CALLS}


@calls
def test_in_float32_too(name: str, direction: str) -> None:
    """Eight channels are two accesses there; what is narrow in 16 bits may be."""
    allowed = NARROW.get(f"{name} {direction}", Narrow("", {})).shares
    narrow = {k: v for k, v in shares(name, direction, FLOAT).items() if v < LEAST and k not in allowed}
    assert narrow == {}


OF_QUADS = {"mlrn": {"conv_mix_kernel", "esa_small_kernel"}, "rlfn": {"esa_small_kernel"}}


@pytest.mark.parametrize("dtype", (HALF, FLOAT), ids=str)
@pytest.mark.parametrize("name", OF_QUADS)
def test_frozen_networks_have_pixels_of_whole_accesses(name: str, dtype: torch.dtype) -> None:
    """Their channels are padded; narrow are only the image, the result and, in 16 bits, what QUADS says."""
    net = fastsr.create_model(name, scale=2, num_block=1).to(dtype).requires_grad_(False)
    x = torch.rand(1, 3, *WHOLE_TILES).to(dtype)
    with fastsr.backend("cuda"):
        with counted() as found:
            net(x)
        before = [kernel for kernel in found if kernel.accesses]
        frozen = fastsr.freeze(net)
        with counted() as found:
            frozen(x)
    assert [kernel.name for kernel in found] == [kernel.name for kernel in before]
    _, *inner, _ = found
    narrow = {kernel.name for kernel in inner if share([kernel]) != 1.0}
    assert narrow == (OF_QUADS[name] if dtype == HALF else set())
    if dtype == HALF:
        assert 2 * sum(kernel.accesses for kernel in found) < sum(kernel.accesses for kernel in before)


@pytest.mark.parametrize("name", CASES)
def test_no_output_escapes_the_counts(name: str) -> None:
    found = counts(name, HALF)
    assert sum(kernel.stored for kernel in found.forward) >= found.outputs


def depthwise_products(taps: int, dtype: torch.dtype) -> float:
    """Thread instructions per element of the three depthwise convolutions.

    Only products of the 1x1 before them grow with the channels in: twice those of 32 less those of 64 leave the rest.
    """
    h, w, k = 16, 16, 64

    def products(c: int) -> int:
        case = Case(conv(), lambda size, dtype: conv_inputs((1, c, *size), k, taps, dtype), trained=False)
        return sum(kernel.products for kernel in step(case, (h, w), dtype).forward)

    return 32 * (2 * products(32) - products(64)) / (h * w * k)


# With every window read from 16 bytes on, a channel's tile of 256 pixels takes 4 products for the 1xk, 4 for the kx1
# and 12 for the 3x3, or 32 * 20 / 256 thread instructions an element.
MOST_PRODUCTS = 2.5


@pytest.mark.parametrize("dtype", (HALF, BFLOAT), ids=str)
@pytest.mark.parametrize(("taps", "expected"), ((9, 1.5), (17, 1.75), (25, 2.0), (33, 2.25)))
def test_products_of_toeplitz_matrices(taps: int, expected: float, dtype: torch.dtype) -> None:
    assert depthwise_products(taps, dtype) == expected <= MOST_PRODUCTS
