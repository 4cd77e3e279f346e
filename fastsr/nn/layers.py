"""Layers: pixel norm, blueprint separable and asymmetric large-kernel convolution, the upsampling tail.

Convolutions are held as ordinary `nn.Conv2d` children, so that state dicts, initialisers, optimisers and EMA see
what they know; `forward` hands their weights to one fused operator and does not call them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsr import ops
from fastsr._export import exporting
from fastsr.errors import InputError
from fastsr.nn.together import Ready
from fastsr.reference import Activation, ALKConvWeights, Residual


class PixelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel of [N, C, H, W], affine (`fastsr.ops.pixel_norm`)."""

    def __init__(self, num_feat: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_feat))
        self.bias = nn.Parameter(torch.zeros(num_feat))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.pixel_norm(x, parameter(self, "weight"), parameter(self, "bias"), self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def depthwise(channels: int, kernel: tuple[int, int], stride: int = 1, padding: int | None = None) -> nn.Conv2d:
    pad = (kernel[0] // 2, kernel[1] // 2) if padding is None else (padding, padding)
    return nn.Conv2d(channels, channels, kernel, stride, pad, groups=channels)


def parameter(module: nn.Module, name: str) -> Any:
    """`getattr(module, name)` of what is a parameter mostly, in a fifth of the time that nn.Module's lookup takes."""
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found


def child(module: nn.Module, name: str) -> Any:
    """`getattr(module, name)` of what is a module mostly, as fast."""
    found = module._modules.get(name)
    return getattr(module, name) if found is None else found


def conv_bias(conv: nn.Conv2d) -> Tensor:
    """The bias of a convolution that must have one."""
    bias: Tensor | None = parameter(conv, "bias")
    if bias is None:
        raise InputError(f"{conv} has no bias; build it with bias=True")
    return bias


def conv_weights(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a convolution that must have one."""
    return parameter(conv, "weight"), conv_bias(conv)


def fused_conv3x3(
    conv: nn.Conv2d,
    x: Tensor,
    activation: Activation = "none",
    shortcut: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """act(conv(x)) + shortcut in one operator (`fastsr.ops.conv3x3_gelu`); `overwrite`: in the place of shortcut."""
    return ops.conv3x3_gelu(
        x,
        *conv_weights(conv),
        activation=activation,
        shortcut=shortcut,
        packed=packed_weights(conv),
        overwrite=overwrite,
    )


def packed_weights(conv: nn.Conv2d) -> Tensor | None:
    """What `pack_conv3x3` or `pack_pointwise` left, or None."""
    packed: Tensor | None = conv.__dict__.get("packed")
    return packed


def pack_conv3x3(conv: nn.Conv2d) -> None:
    """Pack the weights for `fused_conv3x3`; later changes of them have no effect."""
    conv.__dict__["packed"] = ops.pack_conv3x3_gelu(*conv_weights(conv))


def pad_channels(conv: nn.Conv2d, inputs: int, outputs: int) -> None:
    """Give a dense or depthwise convolution more channels, with weights of zero; for inference only."""
    conv.groups = 1 if conv.groups == 1 else inputs
    more_in, more_out = inputs // conv.groups - conv.weight.shape[1], outputs - conv.out_channels
    weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, more_in, 0, more_out))
    conv.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None:
        conv.bias = nn.Parameter(F.pad(conv.bias.detach(), (0, more_out)), requires_grad=False)
    conv.in_channels, conv.out_channels = inputs, outputs


def fused_pointwise(conv: nn.Conv2d, maps: Sequence[Tensor]) -> Tensor:
    """conv(cat(maps, 1)) in one operator (`fastsr.ops.pointwise`)."""
    return ops.pointwise(maps, *conv_weights(conv), packed=packed_weights(conv))


def pack_pointwise(conv: nn.Conv2d) -> None:
    """Pack the weights for `fused_pointwise` and `Fusion`; later changes of them have no effect."""
    conv.__dict__["packed"] = ops.pack_pointwise(*conv_weights(conv))


def in_autocast_dtype(x: Tensor) -> Tensor:
    """A float32 image in the dtype that autocast computes convolutions in, if it is on.

    A fused operator keeps the dtype of its input, so it is the image that decides for all maps behind it. The residual
    is added to the result from the image itself, in float32.
    """
    device = x.device.type
    if x.dtype != torch.float32 or x.is_meta or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


class Fusion:
    """act(conv1x1) of maps that come one after another, as if they were concatenated.

    Where it costs nothing in exactness (`ops.may_free_early`), maps are added up in pairs as they come and need not all
    be kept: of ALKDNet's peak memory on a large image that is half.
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation) -> None:
        (self.weight, self.bias), self.packed = conv_weights(conv), packed_weights(conv)
        self.activation = activation
        self.maps: list[Tensor] = []
        self.first, self.last = 0, 0  # of the weight's channels, those of `maps`
        self.sum: Tensor | None = None

    def add(self, x: Tensor) -> None:
        self.maps.append(x)
        self.last += x.shape[1]
        if len(self.maps) == 2 and self.last < self.weight.shape[1] and ops.may_free_early(x):
            self.sum = self._product("none")

    def result(self) -> Tensor:
        return self._product(self.activation)

    def _product(self, activation: Activation) -> Tensor:
        maps, self.maps, first, self.first = self.maps, [], self.first, self.last
        return ops.pointwise(
            maps,
            self.weight,
            self.bias,
            shortcut=self.sum,
            activation=activation,
            packed=self.packed,
            first=first,
        )


class Packing(nn.Module):
    """A part that in inference copies (`fastsr.freeze`) packs its weights once."""

    packed: Tensor | None = None  # in the order in which the kernel reads them
    kept: Any = None  # the weights themselves, looked up once

    def looked_up(self) -> Any:
        """What is kept, or None; an export must see the parameters where they are."""
        return None if self.kept is None or exporting() else self.kept

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica: nn.Module = super()._replicate_for_data_parallel()
        replica.__dict__["kept"] = None  # its weights are on another device
        return replica


class BSConvU(Packing):
    """Blueprint separable convolution: `pw` 1x1 without bias, then `dw` depthwise 3x3 (`fastsr.ops.bsconv`)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.dw = depthwise(out_channels, (3, 3), stride, padding)

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return parameter(child(self, "pw"), "weight"), *conv_weights(child(self, "dw"))

    def forward(self, x: Tensor, shortcut: Tensor | None = None, activation: Activation = "none") -> Tensor:
        """act(dw(pw(x)) + shortcut)."""
        dw = child(self, "dw")
        return ops.bsconv(
            x,
            *self.weights(),
            stride=dw.stride[0],
            padding=int(dw.padding[0]),
            shortcut=shortcut,
            activation=activation,
            packed=self.packed,
        )

    def stage(self, x: Tensor, distil: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """The distilled GELU(distil(x)) and the refined GELU(self(x) + x) (BSRN, section 3.3)."""
        return ops.bsconv_stage(x, *conv_weights(distil), *self.weights(), packed=self.packed)

    def pack(self, distil: nn.Conv2d | None = None) -> None:
        """Pack the weights for `forward`, or with `distil` for `stage`; later changes of them have no effect."""
        distilling = () if distil is None else conv_weights(distil)
        self.packed = ops.pack_bsconv(*self.weights(), *distilling)


class ALKConv(Packing):
    """Asymmetric large-kernel convolution (`fastsr.ops.alk_conv`), with the official children's names."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 9, eps: float = 1e-6) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise InputError(f"lk_size is {kernel_size}; pass an odd kernel size, the papers' are 5, 7, 9 and 11")
        self.pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.LoRA1 = depthwise(out_channels, (kernel_size, 1))
        self.LoRA2 = depthwise(out_channels, (1, kernel_size))
        self.small_conv = depthwise(out_channels, (3, 3))
        self.norm = PixelNorm(out_channels, eps)

    def weights(self) -> ALKConvWeights:
        norm = child(self, "norm")
        return self.looked_up() or ALKConvWeights(
            parameter(child(self, "pw"), "weight"),
            *conv_weights(child(self, "LoRA1")),
            *conv_weights(child(self, "LoRA2")),
            *conv_weights(child(self, "small_conv")),
            parameter(norm, "weight"),
            parameter(norm, "bias"),
        )

    def parts(self) -> list[ops.ALKPart]:
        """What may be packed for `ready` of `forward`; nothing if it is packed for good."""
        return [(self.weights(), ())] if self.packed is None else []

    def forward(self, x: Tensor, activation: Activation = "none", ready: Ready | None = None) -> Tensor:
        weights, packed = ready or (self.weights(), self.packed)
        return ops.alk_conv(x, weights, eps=child(self, "norm").eps, activation=activation, packed=packed)

    def stage(self, x: Tensor, distil: nn.Conv2d, ready: Ready | None = None) -> tuple[Tensor, Tensor]:
        """The distilled GELU(distil(x)) and the refined GELU(self(x) + x), in one operator."""
        weights, packed = ready or (self.weights(), self.packed)
        return ops.alk_stage(x, *conv_weights(distil), weights, eps=child(self, "norm").eps, packed=packed)

    def pack(self, distil: nn.Conv2d | None = None) -> None:
        """Pack the weights for `forward`, or with `distil` for `stage`; later changes of them have no effect."""
        self.kept = None
        self.kept = self.weights()
        distilling = () if distil is None else conv_weights(distil)
        self.packed = ops.pack_alk_conv(self.kept, *distilling)


class PixelShuffleUp(nn.Sequential):
    """The tail of BSRN, RLFN and MLRN: child `0` is the 3x3 convolution (`fastsr.ops.upsample`)."""

    def __init__(self, num_feat: int, num_out_ch: int, scale: int) -> None:
        super().__init__(conv3x3(num_feat, num_out_ch * scale * scale))
        self.scale = scale

    def forward(self, x: Tensor, lr: Tensor | None = None, residual: Residual = "none") -> Tensor:
        conv = self[0]
        assert isinstance(conv, nn.Conv2d)
        return ops.upsample(x, *conv_weights(conv), lr, scale=self.scale, residual=residual)
