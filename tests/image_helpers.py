"""Small networks and pictures that the tests of the image pipeline share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

SHARED = Path(__file__).parents[2] / "shared"


class Nearest(nn.Module):
    """A stand-in for a network: nearest-neighbour enlargement, the identity on every pixel."""

    architecture = "nearest"
    num_in_ch = 3

    def __init__(self, scale: int = 2, input_range: float = 1.0, min_size: int = 4) -> None:
        super().__init__()
        self.scale, self.input_range, self.min_size = scale, input_range, min_size
        self.gain = nn.Parameter(torch.ones(()), requires_grad=False)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == self.gain.dtype
        self.sizes.append((x.shape[-2], x.shape[-1]))
        up = x.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)
        return up * self.gain


class Local(Nearest):
    """Two 3x3 convolutions in float64 before the enlargement: a receptive field of 2 pixels on each side."""

    def __init__(self, scale: int = 2, min_size: int = 4) -> None:
        super().__init__(scale, min_size=min_size)
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
        for parameter in self.body.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.body(x))


def picture(height: int, width: int, *, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, [H, W, 3], using the whole range of the dtype."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 5 + k) + np.cos(columns / (4 + k)) for k in range(3)]
    values = np.stack(waves, axis=2) / 4 + 0.5 + rng.normal(0, 0.05, (height, width, 3))
    values = (values - values.min()) / (values.max() - values.min())
    return np.rint(values * np.iinfo(dtype).max).astype(dtype)


def shared(*parts: str) -> Path:
    """A file of the shared folder beside the checkout; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(('../shared', *parts))}, which is not here")
    return path
