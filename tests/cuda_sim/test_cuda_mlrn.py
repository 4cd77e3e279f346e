"""MLRN, whole, on the CUDA C++ kernels: its output and every gradient against float64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import assert_network_within_twice, feature_map

import fastsr

pytestmark = pytest.mark.usefixtures("cuda_kernels")


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_output_and_gradients_are_within_twice_the_error_of_pytorch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = fastsr.create_model("mlrn", scale=2, num_feat=26, num_block=1, esa_channels=8).to(dtype)
    assert_network_within_twice(net, feature_map((1, 3, 18, 17), "nchw").sigmoid().to(dtype), "cuda")
