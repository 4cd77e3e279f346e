"""ALKDNet and BSRN, whole, on the CUDA C++ kernels: output and every gradient against float64, and frozen copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import assert_network_within_twice, feature_map

import fastsr

pytestmark = pytest.mark.usefixtures("cuda_kernels")

# ALKDNet's ablation with BSRN's convolution is the third.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "alkdnet": ("alkdnet", {}),
    "bsrn": ("bsrn", {}),
    "alkdnet_bsconv": ("alkdnet", {"conv": "BSConvU"}),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
by_network = pytest.mark.parametrize("network", NETWORKS)


def network_of(name: str, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    architecture, options = NETWORKS[name]
    net = fastsr.create_model(architecture, scale=2, num_feat=24, num_block=1, esa_channels=8, **options)
    net.B1.cca.conv_du[0].bias.data.fill_(0.5)  # keeps the ReLU open, or the attention would have no gradients
    return net.to(dtype)


def image(dtype: torch.dtype) -> torch.Tensor:
    return feature_map((1, 3, 19, 17), "nchw").sigmoid().to(dtype)


@by_network
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_gradients_are_within_twice_the_error_of_pytorch(network: str, dtype: torch.dtype) -> None:
    assert_network_within_twice(network_of(network, dtype), image(dtype), "cuda")


@by_network
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_copy_is_within_twice_the_error_of_pytorch(network: str, dtype: torch.dtype) -> None:
    """The fused stages and packed weights of inference."""
    net, x = network_of(network, dtype), image(dtype)
    with torch.no_grad(), fastsr.backend("reference"):
        exact, plain = net.double()(x.double()), network_of(network, dtype)(x)
    with torch.no_grad(), fastsr.backend("cuda"):
        fused = fastsr.freeze(network_of(network, dtype))(x)
    errors = [(y.double() - exact).norm().item() for y in (plain, fused)]
    assert errors[1] <= 2 * errors[0]
