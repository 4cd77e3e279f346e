"""How many kernels a training step starts: a forward, an L1 loss and a backward."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import feature_map
from test_cuda_launches import CHOICES, Launches, by_choice, network, simulated_only
from torch import nn
from torch.nn import functional as F

pytestmark = [pytest.mark.usefixtures("cuda_kernels"), simulated_only]


def launches(net: nn.Module, choice: str) -> tuple[int, int]:
    """Of the forward with its loss, and of the backward."""
    x, hr = feature_map((1, 3, 16, 17), "nhwc").sigmoid(), torch.zeros(1, 3, 32, 34)
    with CHOICES[choice]():
        with Launches() as forward:
            loss = F.l1_loss(net.train()(x), hr)
        of_forward = forward.count
        with Launches() as backward:
            torch.autograd.grad(loss, list(net.parameters()))
    return of_forward, backward.count


@by_choice
@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [("mlrn", 42, 158), ("rlfn", 54, 182), ("alkdnet", 139, 463), ("bsrn", 105, 307)],
)
def test_a_step(name: str, forward: int, backward: int, choice: str) -> None:
    assert launches(network(name), choice) == (forward, backward)
