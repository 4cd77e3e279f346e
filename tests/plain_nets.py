"""ALKDNet, BSRN, RLFN and an MLRN in plain PyTorch, as other code bases write them; nothing of fastsr is used.

Children are named as in the official checkpoints, extras without parameters (activations, pooling, sigmoid)
included. The MLRN has names of its own. Keywords make the variations that the tests need.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of [N, C, H, W]; `tells_eps=False` hides eps from the outside."""

    def __init__(self, channels: int, eps: float = 1e-6, tells_eps: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        setattr(self, "eps" if tells_eps else "tiny", eps)

    def forward(self, x: Tensor) -> Tensor:
        eps = self.eps if hasattr(self, "eps") else self.tiny
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        normed = (x - mean) / torch.sqrt(variance + eps)
        return self.weight[:, None, None] * normed + self.bias[:, None, None]


class PermutedNorm(nn.LayerNorm):
    """The same by way of nn.LayerNorm."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class SeparableConv(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1, padding: int = 1, **conv: object) -> None:
        super().__init__()
        self.pw = nn.Conv2d(channels, out, 1, bias=False)
        self.dw = nn.Conv2d(out, out, 3, stride, padding, groups=out, **conv)

    def forward(self, fea: Tensor) -> Tensor:
        return self.dw(self.pw(fea))


class LargeKernelConv(nn.Module):
    def __init__(self, channels: int, out: int, size: int, norm: type[nn.Module] = PermutedNorm, **norm_args) -> None:
        super().__init__()
        self.pw = nn.Conv2d(channels, out, 1, bias=False)
        self.LoRA1 = nn.Conv2d(out, out, (size, 1), padding=(size // 2, 0), groups=out)
        self.LoRA2 = nn.Conv2d(out, out, (1, size), padding="same", groups=out)
        self.small_conv = nn.Conv2d(out, out, 3, padding=1, groups=out)
        self.norm = norm(out, **{"eps": 1e-6, **norm_args})
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pw(x)
        return self.norm(self.act(self.LoRA1(x)) + self.act(self.LoRA2(x)) + self.act(self.small_conv(x)))


class SeparableESA(nn.Module):
    def __init__(self, channels: int, inner: int = 16, padding: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv_f = nn.Conv2d(inner, inner, 1)
        self.maxPooling = nn.MaxPool2d(kernel_size=7, stride=3)
        self.conv_max = SeparableConv(inner, inner)
        self.conv2 = SeparableConv(inner, inner, 2, padding)
        self.conv3 = SeparableConv(inner, inner)
        self.conv3_ = SeparableConv(inner, inner)
        self.conv4 = nn.Conv2d(inner, channels, 1)
        self.sigmoid = nn.Sigmoid()
        self.GELU = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        low = self.GELU(self.conv_max(self.maxPooling(self.conv2(reduced))))
        low = self.conv3_(self.GELU(self.conv3(low)))
        low = F.interpolate(low, x.shape[2:], mode="bilinear", align_corners=False)
        return x * self.sigmoid(self.conv4(low + self.conv_f(reduced)))


class DenseESA(nn.Module):
    def __init__(self, channels: int, inner: int = 16, padding: int = 0, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv_f = nn.Conv2d(inner, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, 2, padding)
        self.conv3 = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv4 = nn.Conv2d(inner, channels, 1)
        self.sigmoid = nn.Sigmoid()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        low = self.conv3(F.max_pool2d(self.conv2(reduced), kernel_size=7, stride=3))
        low = F.interpolate(low, x.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return x * self.sigmoid(self.conv4(low + self.conv_f(reduced)))


class ContrastAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        squeezed = max(channels // 16, 1)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
        variance = (x - mean).pow(2).sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
        return x * self.conv_du(variance.pow(0.5) + self.avg_pool(x))


class DistillationBlock(nn.Module):
    """ALKDB with `size`, ESDB without; `residual=False`, `act`, `dropout` and `detach` make strangers of it."""

    def __init__(
        self,
        channels: int,
        size: int | None = None,
        pixel_norm: bool = False,
        padding: int = 0,
        residual: bool = True,
        act: nn.Module | None = None,
        dropout: float = 0.0,
        detach: bool = False,
        **conv: object,
    ) -> None:
        super().__init__()
        half = channels // 2
        self.residual, self.detach = residual, detach

        def refine(out: int) -> nn.Module:
            return SeparableConv(channels, out) if size is None else LargeKernelConv(channels, out, size, **conv)

        self.c1_d, self.c1_r = nn.Conv2d(channels, half, 1), refine(channels)
        self.c2_d, self.c2_r = nn.Conv2d(channels, half, 1), refine(channels)
        self.c3_d, self.c3_r = nn.Conv2d(channels, half, 1), refine(channels)
        self.c4 = refine(half)
        self.act = nn.GELU() if act is None else act
        self.drop = nn.Dropout(dropout)
        self.c5 = nn.Conv2d(4 * half, channels, 1)
        self.esa = SeparableESA(channels, padding=padding)
        self.cca = ContrastAttention(channels)
        if pixel_norm:
            self.pixel_norm = PermutedNorm(channels)

    def forward(self, input: Tensor) -> Tensor:
        x, distilled = input, []
        for d, r in ((self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)):
            distilled.append(self.act(d(x)))
            x = self.act(r(x) + x)
        fused = self.c5(torch.cat([*distilled, self.act(self.c4(x))], dim=1))
        y = self.drop(self.cca(self.esa(fused)))
        if hasattr(self, "pixel_norm"):
            y = self.pixel_norm(y)
        if self.detach:
            y = y + 0.5 * (y - y.detach())
        return y + input if self.residual else y


class _Distillation(nn.Module):
    def _build(self, channels: int, blocks: list[nn.Module]) -> None:
        self.blocks = len(blocks)
        self.fea_conv = SeparableConv(12, channels)
        for i, block in enumerate(blocks, 1):
            setattr(self, f"B{i}", block)
        self.c1 = nn.Conv2d(channels * len(blocks), channels, 1)
        self.GELU = nn.GELU()

    def _features(self, image: Tensor) -> Tensor:
        x = shallow = self.fea_conv(torch.cat([image] * 4, dim=1))
        outputs = []
        for i in range(self.blocks):
            x = getattr(self, f"B{i + 1}")(x)
            outputs.append(x)
        return self.c2(self.GELU(self.c1(torch.cat(outputs, dim=1)))) + shallow


class ALKDN(_Distillation):
    def __init__(self, upscale: int = 2, channels: int = 64, blocks: int = 8, size: int = 9, **block: object) -> None:
        super().__init__()
        self._build(channels, [DistillationBlock(channels, size, True, 1, **block) for _ in range(blocks)])
        self.c2 = LargeKernelConv(channels, channels, 3)
        self.c_up = nn.Conv2d(channels, 3 * upscale**2, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(upscale)
        self.upscale = upscale

    def forward(self, x: Tensor) -> Tensor:
        anchor = torch.repeat_interleave(x, self.upscale**2, dim=1)
        return self.pixel_shuffle(self.c_up(self._features(x)) + anchor)


class _Upsampler(nn.Module):
    def __init__(self, upscale: int, channels: int) -> None:
        super().__init__()
        self.upsampleOneStep = nn.Sequential(nn.Conv2d(channels, 3 * upscale**2, 3, 1, 1), nn.PixelShuffle(upscale))

    def forward(self, x: Tensor) -> Tensor:
        return self.upsampleOneStep(x)


class BSRN(_Distillation):
    def __init__(self, upscale: int = 2, channels: int = 64, blocks: int = 8, **block: object) -> None:
        super().__init__()
        self._build(channels, [DistillationBlock(channels, **block) for _ in range(blocks)])
        self.c2 = SeparableConv(channels, channels)
        self.upsampler = _Upsampler(upscale, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsampler(self._features(x))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, mid: int | None = None, inner: int = 16, slope: float = 0.05) -> None:
        super().__init__()
        mid = mid or channels
        self.c1_r = nn.Conv2d(channels, mid, 3, padding=1)
        self.c2_r = nn.Conv2d(mid, mid, 3, padding=1)
        self.c3_r = nn.Conv2d(mid, channels, 3, padding=1)
        self.c5 = nn.Conv2d(channels, channels, 1)
        self.esa = DenseESA(channels, inner)
        self.act = nn.LeakyReLU(slope, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.c2_r(self.act(self.c1_r(x))))
        return self.esa(self.c5(self.act(self.c3_r(y)) + x))


class RLFN(nn.Module):
    def __init__(
        self, upscale: int = 2, channels: int = 52, blocks: int = 6, mid: int | None = None, slope: float = 0.05
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.conv_1 = nn.Conv2d(3, channels, 3, padding=1)
        for i in range(blocks):
            self.add_module(f"block_{i + 1}", ResidualBlock(channels, mid, slope=slope))
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(channels, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))

    def forward(self, x: Tensor) -> Tensor:
        y = shallow = self.conv_1(x)
        for i in range(self.blocks):
            y = self._modules[f"block_{i + 1}"](y)
        return self.upsampler(self.conv_2(y) + shallow)


class MixerBlock(nn.Module):
    """MLRN's block; `mixer` is "full", "pointwise" (no depthwise convolution) or "none"."""

    def __init__(
        self, channels: int, act: str = "gelu", mixer: str = "full", late_input: bool = True, **esa: object
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 1)  # out of order on purpose
        if mixer == "full":
            self.spatial = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        if mixer != "none":
            self.channel = nn.Conv2d(channels, channels, 1)
        self.activation = nn.GELU() if act == "gelu" else nn.LeakyReLU(0.05, inplace=True)
        self.attention = DenseESA(channels, **esa)
        self.late_input = late_input

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.second(self.activation(self.first(x))))
        if hasattr(self, "spatial"):
            y = self.activation(self.spatial(y)) + y
        if hasattr(self, "channel"):
            y = self.activation(self.channel(y))
        return self.attention(self.last(y + x if self.late_input else y))


class MLRN(nn.Module):
    def __init__(self, upscale: int = 2, channels: int = 58, blocks: int = 6, **block: object) -> None:
        super().__init__()
        self.upscale = upscale
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(MixerBlock(channels, **block) for _ in range(blocks)))
        self.tail = nn.Conv2d(channels, channels, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(channels, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)
        y = self.up(self.tail(self.body(shallow)) + shallow)
        return y + F.interpolate(x, scale_factor=self.upscale, mode="bilinear", align_corners=False)
