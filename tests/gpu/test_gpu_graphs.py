"""freeze(cuda_graph=True) on a GPU: replayed calls give what the network gives. Needs a GPU: `pytest tests/gpu`."""

from __future__ import annotations

import pytest
import torch
from test_models_cpu import network
from torch import Tensor

import fastsr
from fastsr.freeze import FrozenNet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

HALF = torch.float16


def pair(name: str, device: str = "cuda", **options: int) -> tuple[FrozenNet, FrozenNet]:
    net = network(name).to(device)
    return fastsr.freeze(net, HALF, cuda_graph=True, **options), fastsr.freeze(net, HALF)


def image(height: int, width: int, seed: int = 0, device: str = "cuda") -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)).to(device, HALF)


@pytest.mark.parametrize("name", ("alkdnet", "bsrn", "mlrn", "rlfn"))
def test_changing_images_and_shapes(name: str) -> None:
    """More shapes than graphs, so that some are recorded again in memory that others have used."""
    graphed, plain = pair(name, max_graphs=2)
    images = [image(96 + 8 * (seed % 3), 128, seed) for seed in range(9)]
    with torch.no_grad():
        results = [graphed(x) for x in images]
        for x, y in zip(images, results, strict=True):
            assert torch.equal(y, plain(x))


def test_calls_from_several_streams() -> None:
    graphed, plain = pair("mlrn")
    images = [image(128, 128, seed) for seed in range(8)]
    streams = [torch.cuda.Stream() for _ in range(4)]
    with torch.no_grad():
        expected = [plain(x) for x in images]
        torch.cuda.synchronize()
        results = []
        for i, x in enumerate(images):
            with torch.cuda.stream(streams[i % 4]):
                results.append(graphed(x))
        torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_several_devices() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    graphed, plain = pair("mlrn")
    with torch.no_grad():
        expected = plain(image(64, 64))
        assert torch.equal(graphed(image(64, 64)), expected)
        moved = graphed.to("cuda:1")
        assert torch.equal(moved(image(64, 64, device="cuda:1")).to("cuda:0"), expected)


def test_memory_does_not_grow_with_shapes() -> None:
    """Graphs share one pool, and those that are given up give their memory back to it."""
    graphed, _ = pair("mlrn", max_graphs=2)

    def reserved_after(shapes: range) -> int:
        with torch.no_grad():
            for height in shapes:
                graphed(image(height, 256))
        return torch.cuda.memory_reserved()

    first = reserved_after(range(256, 262))
    assert reserved_after(range(250, 280)) <= 1.5 * first
