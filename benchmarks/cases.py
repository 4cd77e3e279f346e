"""What is measured: operators at the sizes the networks use them, and whole networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastsr
from fastsr import nn as fnn
from fastsr import ops

SIZES = {"64x64": (64, 64), "256x256": (256, 256), "640x360": (360, 640)}  # name: (height, width) of the LR image


@dataclass(frozen=True)
class Case:
    """One thing to measure: a module and the shape of its input.

    Attributes:
        name: as printed and stored.
        build: makes the module with fixed random weights, in eval mode.
        shape: [N, C, H, W] of its input.
        white: the largest input value (1 for feature maps).
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    white: float = 1.0

    def image(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(self.shape, generator=generator) * self.white


class _Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1_r, self.c1_d = fnn.ALKConv(64, 64), nn.Conv2d(64, 32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.c1_r.stage(x, self.c1_d)


class _Conv3x3Gelu(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.conv.bias is not None
        return ops.conv3x3_gelu(x, self.conv.weight, self.conv.bias)


class _ConvMix(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        block = fnn.MLRB(channels)
        self.dwc, self.pwc, self.c5 = block.dwc, block.pwc, block.c5

    def forward(self, x: Tensor) -> Tensor:
        dwc, pwc, c5 = self.dwc, self.pwc, self.c5
        assert dwc is not None and pwc is not None
        assert dwc.bias is not None and pwc.bias is not None and c5.bias is not None
        return ops.conv_mix(x, x, dwc.weight, dwc.bias, pwc.weight, pwc.bias, c5.weight, c5.bias)


class _BSConvGelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = fnn.BSConvU(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, shortcut=x, activation="gelu")


class _CCANorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cca, self.norm = fnn.CCA(64), fnn.PixelNorm(64, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.cca(x, x, self.norm)


class _Upsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(64, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.conv.bias is not None
        return ops.upsample(x, self.conv.weight, self.conv.bias, x[:, :3], scale=2, residual="anchor")


OPERATORS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # name: (module, input channels)
    "alk_stage": (_Stage, 64),
    "alk_conv": (lambda: fnn.ALKConv(64, 32), 64),
    "bsconv": (_BSConvGelu, 64),
    "conv3x3_gelu": (lambda: _Conv3x3Gelu(58), 58),
    "conv_mix": (lambda: _ConvMix(58), 58),
    "esa_blueprint": (lambda: fnn.BlueprintESA(64), 64),
    "esa_plain": (lambda: fnn.PlainESA(58), 58),
    "cca_norm": (_CCANorm, 64),
    "pixel_norm": (lambda: fnn.PixelNorm(64), 64),
    "upsample": (_Upsample, 64),
}
NETWORKS = ("alkdnet", "mlrn", "bsrn", "rlfn")


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build().eval()

    return make


def operator_case(name: str, size: str) -> Case:
    build, channels = OPERATORS[name]
    return Case(f"{name} {size}", _seeded(build), (1, channels, *SIZES[size]))


def network_case(name: str, size: str) -> Case:
    build = _seeded(lambda: fastsr.create_model(name, scale=2))
    return Case(f"{name} {size}", build, (1, 3, *SIZES[size]), build().input_range)  # type: ignore[arg-type]


def training_case(name: str, batch: int = 4, patch: int = 48) -> Case:
    build = _seeded(lambda: fastsr.create_model(name, scale=2))
    return Case(f"{name} training {batch}x{patch}x{patch}", build, (batch, 3, patch, patch), build().input_range)  # type: ignore[arg-type]
