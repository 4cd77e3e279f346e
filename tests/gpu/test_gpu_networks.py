"""Whole networks on a GPU by both kinds of kernels: gradients against float64, training steps. `pytest tests/gpu`."""

from __future__ import annotations

import copy

import pytest
import torch
from kernel_checks import assert_network_within_twice, float32_precision
from test_models_cpu import network
from torch import Tensor

import fastsr

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

NETS = ("alkdnet", "bsrn", "mlrn", "rlfn")
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(params=("cuda", "triton"))
def backend(request: pytest.FixtureRequest) -> str:
    reason = fastsr.can_run("esa", request.param, torch.empty(1, 64, 16, 16, device="cuda"))
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


def images(n: int = 4, size: int = 48, dtype: torch.dtype = FLOAT, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, size, size, generator=generator).to("cuda", dtype)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", (FLOAT, BFLOAT), ids=str)
def test_output_and_gradients_are_within_twice_the_error_of_pytorch(
    name: str, dtype: torch.dtype, backend: str
) -> None:
    with float32_precision("ieee"):
        assert_network_within_twice(network(name).to("cuda", dtype), images(dtype=dtype), backend)


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_bit_equal_between_runs(name: str, backend: str) -> None:
    net, x = network(name).cuda(), images(16)
    first = None
    for _ in range(5):
        net.zero_grad()
        with fastsr.backend(backend), torch.autocast("cuda", dtype=HALF):
            net(x).float().square().mean().backward()
        gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        first = first or gradients
        assert all(torch.equal(a, b) for a, b in zip(first, gradients, strict=True))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", (HALF, BFLOAT), ids=str)
def test_training_under_autocast_with_a_scaler(name: str, dtype: torch.dtype, backend: str) -> None:
    """The loss goes down as by plain PyTorch, and the scaler skips no step."""
    losses: dict[str, list[float]] = {}
    for which in ("reference", backend):
        net = copy.deepcopy(network(name)).cuda()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=dtype == HALF)
        x = images(8)
        target = torch.nn.functional.interpolate(x, scale_factor=net.scale, mode="bicubic")
        losses[which] = []
        for _ in range(8):
            optimizer.zero_grad()
            with fastsr.backend(which), torch.autocast("cuda", dtype=dtype):
                loss = (net(x) - target).abs().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[which].append(loss.item())
        assert dtype != HALF or scaler.get_scale() == 1024.0
    plain, fused = losses["reference"], losses[backend]
    assert fused[-1] < fused[0]
    assert all(abs(a - b) <= 0.05 * abs(a) for a, b in zip(plain, fused, strict=True)), losses


@pytest.mark.parametrize("name", NETS)
def test_compiles_in_one_graph_for_any_size(name: str, backend: str) -> None:
    torch._dynamo.reset()
    net = network(name).to("cuda", HALF).eval()
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    with torch.no_grad(), fastsr.backend(backend):
        compiled(images(2, 33, HALF))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for size in (40, 57):
                x = images(2, size, HALF)
                difference = (compiled(x).float() - net(x).float()).abs().max()
                assert difference <= 8 * torch.finfo(HALF).eps
