"""Memory that a training step keeps for its backward pass, fused against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastsr

pytestmark = pytest.mark.usefixtures("cpu_kernels")


def saved_bytes(net: nn.Module, x: Tensor, backend: str) -> int:
    """Bytes of all storages that autograd saves in a forward pass, each counted once, without the parameters."""
    known = {p.untyped_storage().data_ptr() for p in net.parameters()}
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # no storage may be freed and its address given to another one while they are counted

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(t)
        return t

    with fastsr.backend(backend), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(x).abs().mean()
    return sum(storages.values())


@pytest.mark.parametrize(("name", "share"), [("alkdnet", 1 / 3), ("bsrn", 0.45), ("mlrn", 0.4), ("rlfn", 0.6)])
def test_share_of_plain_pytorch(name: str, share: float) -> None:
    net = fastsr.create_model(name, scale=2)
    x = torch.rand(1, 3, 32, 32)
    fused, plain = (saved_bytes(net, x, backend) for backend in ("cpu", "reference"))
    print(f"{name}: {fused / 32**2:.0f} of {plain / 32**2:.0f} bytes an LR pixel")
    assert fused <= share * plain
