"""What is measured: an operator or a network with fixed random weights, its maps, and in which direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastsr
from fastsr import nn as fnn
from fastsr import ops
from fastsr.bench.registry import Registry, parse_size
from fastsr.nn.layers import conv3x3, conv_weights, depthwise
from fastsr.reference import Activation, Residual

TORCH_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One row of a benchmark, without its peers.

    Attributes:
        group: "ops", "models" or "train".
        name: in the registry.
        build: makes the module in eval mode, in float32 on the CPU, always with the same weights.
        shapes: [N, C, H, W] of each map it takes.
        size: as written, "640x360".
        dtype: "fp32", "tf32", "fp16" or "bf16"; in training, that of autocast.
        layout: the caller's, "channels_last" or "contiguous".
        direction: "forward", "backward" (alone, behind a forward that is not timed) or "step" (both and an L1 loss).
        white: the largest value of the maps.
        operator: the name in fastsr.ops, None for a network.
    """

    group: str
    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, int, int, int], ...]
    size: str
    dtype: str = "fp32"
    layout: str = "channels_last"
    direction: str = "forward"
    white: float = 1.0
    operator: str | None = None

    @property
    def id(self) -> str:
        return "/".join((self.group, self.name, self.size, self.dtype, self.layout, self.direction))

    @property
    def autocast(self) -> bool:
        """Whether parameters and maps stay in float32 and autocast gives the dtype."""
        return self.group == "train" and self.dtype in ("fp16", "bf16")

    @property
    def tensor_dtype(self) -> torch.dtype:
        """Of parameters and maps."""
        return torch.float32 if self.autocast else TORCH_DTYPES[self.dtype]

    def maps(self, seed: int = 0, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """The inputs, contiguous, with other values for another seed."""
        generator = torch.Generator().manual_seed(seed)
        values = [torch.rand(shape, generator=generator) * self.white for shape in self.shapes]
        return tuple(value.to(device, self.tensor_dtype) for value in values)


class _Stage(nn.Module):
    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.c1_r, self.c1_d = fnn.ALKConv(channels[0], channels[0]), nn.Conv2d(channels[0], channels[0] // 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.c1_r.stage(x, self.c1_d)


class _ALKConvGelu(nn.Module):
    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.conv = fnn.ALKConv(channels[0], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, activation="gelu")


class _BSConvGelu(nn.Module):
    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.conv = fnn.BSConvU(channels[0], channels[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, shortcut=x, activation="gelu")


class _CCANorm(nn.Module):
    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.cca, self.norm = fnn.CCA(channels[0]), fnn.PixelNorm(channels[0], eps=1e-5)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.cca(x, shortcut, self.norm)


class _Conv3x3Gelu(nn.Module):
    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.conv = conv3x3(channels[0], channels[0])

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv3x3_gelu(x, *conv_weights(self.conv))


class _ConvMix(nn.Module):
    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        c = channels[0]
        self.dwc, self.pwc, self.c5 = depthwise(c, (3, 3)), nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        convs = (self.dwc, self.pwc, self.c5)
        return ops.conv_mix(x, shortcut, *(value for conv in convs for value in conv_weights(conv)))


class _Pointwise(nn.Module):
    def __init__(self, channels: Sequence[int], out_channels: int, activation: Activation = "none") -> None:
        super().__init__()
        self.conv, self.activation = nn.Conv2d(sum(channels), out_channels, 1), activation

    def forward(self, *maps: Tensor) -> Tensor:
        return ops.pointwise(maps, *conv_weights(self.conv), activation=self.activation)


class _Upsample(nn.Module):
    def __init__(self, channels: Sequence[int], scale: int, residual: Residual) -> None:
        super().__init__()
        self.conv = conv3x3(channels[0], channels[1] * scale * scale)
        self.scale, self.residual = scale, residual

    def forward(self, x: Tensor, lr: Tensor) -> Tensor:
        weight, bias = conv_weights(self.conv)
        return ops.upsample(x, weight, bias, lr, scale=self.scale, residual=self.residual)


BUILDERS: dict[str, Callable[..., nn.Module]] = {  # registry name: (channels of the maps, settings) -> module
    "alk_stage": _Stage,
    "alk_conv": _ALKConvGelu,
    "bsconv": _BSConvGelu,
    "cca_norm": _CCANorm,
    "conv3x3_gelu": _Conv3x3Gelu,
    "conv_mix": _ConvMix,
    "esa_blueprint": lambda channels: fnn.BlueprintESA(channels[0]),
    "esa_plain": lambda channels: fnn.PlainESA(channels[0]),
    "pixel_norm": lambda channels: fnn.PixelNorm(channels[0]),
    "pointwise_c5": _Pointwise,
    "pointwise_trunk": _Pointwise,
    "upsample": _Upsample,
}


def make_case(registry: Registry, group: str, name: str, size: str, dtype: str, layout: str, direction: str) -> Case:
    """The case of one point of the registry's grid; nothing is built yet."""
    batch, height, width = parse_size(size)
    if group == "ops":
        entry = registry.operators[name]
        build = _seeded(lambda: BUILDERS[name](entry.inputs, **entry.settings))
        channels, white, operator = entry.inputs, 1.0, entry.operator
    else:
        settings: dict[str, Any] = registry.networks[name]
        net = fastsr.create_model(**settings)
        build = _seeded(lambda: fastsr.create_model(**settings))
        channels, white, operator = [net.num_in_ch], net.input_range, None
    shapes = tuple((batch, c, height, width) for c in channels)
    return Case(group, name, build, shapes, size, dtype, layout, direction, white, operator)


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build().eval()

    return make
