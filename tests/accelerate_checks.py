"""Small plain networks and checks that the tests of accelerate share."""

from __future__ import annotations

from collections.abc import Callable

import plain_nets as plain
import torch
from torch import Tensor, nn

from fastsr.patch import accelerate

SMALL: dict[str, Callable[[], nn.Module]] = {
    "alkdn": lambda: plain.ALKDN(2, 16, 2, 5),
    "bsrn": lambda: plain.BSRN(3, 16, 2),
    "rlfn": lambda: plain.RLFN(2, 12, 2, mid=14),
    "mlrn": lambda: plain.MLRN(2, 12, 2),
}
COUNTS = {
    "alkdn": {"ALKDB": 2, "BSConvU": 1, "ALKConv": 1},
    "bsrn": {"ESDB": 2, "BSConvU": 2, "PixelShuffleUp": 1},
    "rlfn": {"RLFB": 2, "PixelShuffleUp": 1},
    "mlrn": {"MLRB": 2, "PixelShuffleUp": 1},
}


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SMALL[name]()


def image(n: int = 2, h: int = 19, w: int = 26, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, h, w, generator=torch.Generator().manual_seed(5))


def results(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and all gradients of a loss that weighs every output differently."""
    x = x.clone().requires_grad_(True)
    net.zero_grad(set_to_none=True)
    y = net(x)
    weights = torch.rand(y.shape, generator=torch.Generator().manual_seed(6))
    (y * weights.to(y)).mean().backward()
    grads = {key: value.grad.clone() for key, value in net.named_parameters()}
    return {"output": y.detach(), "input": x.grad, **grads}


def assert_within_twice(fast: dict[str, Tensor], slow: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Maximum errors against float64 are at most twice those of the plain network."""
    assert fast.keys() == slow.keys() == exact.keys()
    for key, want in exact.items():
        error, allowed = (float((got[key].double() - want).abs().max()) for got in (fast, slow))
        floor = 4 * torch.finfo(fast[key].dtype).eps * float(want.abs().max())
        assert error <= 2 * allowed + floor, f"{key}: {error:.2e} against {allowed:.2e}"


def reason(net: nn.Module, path: str) -> str:
    """Why `path` was kept."""
    report = accelerate(net)
    assert path in report.kept, str(report)
    assert path not in report.swapped
    return report.kept[path]
