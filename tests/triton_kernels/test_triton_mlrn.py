"""MLRN, whole, on the Triton kernels: its output and every gradient against float64, and how much it launches."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from kernel_checks import assert_network_within_twice, device_of, feature_map, moved

import fastsr

DEVICE = device_of("triton")


def network(blocks: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return fastsr.create_model("mlrn", scale=2, num_feat=10, num_block=blocks, esa_channels=8)


def test_output_and_gradients_are_within_twice_the_error_of_pytorch() -> None:
    assert_network_within_twice(network(1), feature_map((1, 3, 16, 15), "nchw").sigmoid(), "triton")


def test_launches_of_a_forward() -> None:
    """Two for a 3x3 convolution, whose weight is packed, three for conv_mix and for esa."""
    from fastsr.kernels import launch

    started: list[str] = []
    original = launch._run

    def run(kernel: Any, *arguments: Any) -> None:
        started.append(kernel.fn.__name__)
        original(kernel, *arguments)

    net = network(2).to(DEVICE)
    with torch.no_grad(), fastsr.backend("triton"), patch.object(launch, "_run", run):
        net(moved(feature_map((1, 3, 15, 15), "nchw"), DEVICE))
    assert len(started) == (2 + 2 + 2) + 2 * (2 + 2 + 3 + 3), started
