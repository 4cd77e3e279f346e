"""ALKDNet, whole, on the Triton kernels: its output and every gradient against float64, and how much it launches."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernel_checks import assert_network_within_twice, device_of, feature_map, moved
from torch.utils._python_dispatch import TorchDispatchMode

import fastsr

DEVICE = device_of("triton")
BLOCKS = 8  # of the paper's network
MOST_OPERATORS = 64


def network(blocks: int, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    net = fastsr.create_model("alkdnet", scale=2, num_feat=10, num_block=blocks, esa_channels=8, lk_size=5)
    return net.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradients_are_within_twice_the_error_of_pytorch(dtype: torch.dtype) -> None:
    assert_network_within_twice(network(1, dtype), feature_map((1, 3, 15, 14), "nchw").sigmoid().to(dtype), "triton")


class _Operators(TorchDispatchMode):
    """Counts what reaches the dispatcher, but for views and allocations, which launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in func.name():
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("frozen", [False, True], ids=["plain", "frozen"])
def test_operators_and_launches_of_a_forward(frozen: bool) -> None:
    """With 8 blocks; launches: two a stage and alk_conv, one for c5, five for esa and cca_norm behind it.

    At most 64 launches would be two a stage and nothing else: the bound is on the operators.
    """
    from fastsr.kernels import launch

    started: Counter[str] = Counter()

    def run(kernel: Any, *_: Any) -> None:
        started[f"{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}"] += 1

    net = network(BLOCKS).to(DEVICE).eval()
    if frozen:
        net = fastsr.freeze(net)
    image = moved(feature_map((1, 3, 15, 15), "nchw"), DEVICE)
    with torch.no_grad(), fastsr.backend("triton"), patch.object(launch, "_run", run), _Operators() as operators:
        net(image)
    assert sum(operators.counts.values()) <= MOST_OPERATORS, operators.counts
    block = 3 * 2 + 2 + 1 + 5
    ends = {"bsconv": 2, "c1": 1, "c2": 2, "upsample": 2}
    assert sum(started.values()) == BLOCKS * block + sum(ends.values()), started
