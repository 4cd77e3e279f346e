"""Every fastsr operator in plain PyTorch: the definition that each kernel is held against.

Shapes are [N, C, H, W] in any memory format; dtypes are float16, bfloat16, float32 and float64. Statistics (the
mean and variance of `pixel_norm` and `cca_norm`) are taken in at least float32 whatever the input is, which is
what makes these networks safe in half precision. All functions are differentiable, twice if need be, and consist
of standard operators only, so `torch.compile`, `torch.export` and ONNX see straight through them.

Sources: ALKDNet, Qu and Ke 2024 (doi 10.3389/fnins.2024.1502499); MLRN, Gendy et al., CVPRW 2023, pp. 1593-1602;
BSRN, Li et al., CVPRW 2022, pp. 833-843; RLFN, Kong et al., CVPRW 2022, pp. 766-776.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsr._export import exporting

Activation = Literal["none", "gelu", "leaky_relu"]
Residual = Literal["none", "anchor", "bilinear"]

LEAKY_SLOPE = 0.05  # RLFN, and MLRN's LeakyReLU ablation
ESA_POOL, ESA_POOL_STRIDE = 7, 3

# Before PyTorch 2.13 a traced max_pool2d ties a dynamic size to its remainder by the stride.
_POOL_TIES_SIZES = torch.__version__ < "2.13"


class ALKConvWeights(NamedTuple):
    """Weights of an asymmetric large-kernel convolution: C channels in, K out, odd kernel k."""

    pw_weight: Tensor  # [K, C, 1, 1], without bias
    lora1_weight: Tensor  # [K, 1, k, 1], depthwise, vertical
    lora1_bias: Tensor
    lora2_weight: Tensor  # [K, 1, 1, k], depthwise, horizontal
    lora2_bias: Tensor
    small_weight: Tensor  # [K, 1, 3, 3], depthwise
    small_bias: Tensor
    norm_weight: Tensor  # [K]
    norm_bias: Tensor


class PlainESAWeights(NamedTuple):
    """Weights of the ESA of RLFN and MLRN: C channels in, f inside."""

    conv1_weight: Tensor  # [f, C, 1, 1]
    conv1_bias: Tensor
    conv2_weight: Tensor  # [f, f, 3, 3], stride 2
    conv2_bias: Tensor
    conv3_weight: Tensor  # [f, f, 3, 3]
    conv3_bias: Tensor
    conv_f_weight: Tensor  # [f, f, 1, 1]
    conv_f_bias: Tensor
    conv4_weight: Tensor  # [C, f, 1, 1]
    conv4_bias: Tensor


class BlueprintESAWeights(NamedTuple):
    """Weights of the ESA of BSRN and ALKDNet, whose 3x3 convolutions are blueprint separable."""

    conv1_weight: Tensor  # [f, C, 1, 1]
    conv1_bias: Tensor
    conv2_pw_weight: Tensor  # [f, f, 1, 1]
    conv2_dw_weight: Tensor  # [f, 1, 3, 3], stride 2
    conv2_dw_bias: Tensor
    conv_max_pw_weight: Tensor
    conv_max_dw_weight: Tensor
    conv_max_dw_bias: Tensor
    conv3_pw_weight: Tensor
    conv3_dw_weight: Tensor
    conv3_dw_bias: Tensor
    conv3__pw_weight: Tensor
    conv3__dw_weight: Tensor
    conv3__dw_bias: Tensor
    conv_f_weight: Tensor  # [f, f, 1, 1]
    conv_f_bias: Tensor
    conv4_weight: Tensor  # [C, f, 1, 1]
    conv4_bias: Tensor


ESAWeights = PlainESAWeights | BlueprintESAWeights


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the named activation: exact GELU, LeakyReLU with slope 0.05, or none."""
    if activation == "gelu":
        return F.gelu(x)
    if activation == "leaky_relu":
        return F.leaky_relu(x, LEAKY_SLOPE)
    return x


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int | None = None) -> Tensor:
    kh, kw = weight.shape[-2:]
    pad = (kh // 2, kw // 2) if padding is None else (padding, padding)
    return F.conv2d(x, weight, bias, stride, pad, groups=weight.shape[0])


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer normalisation over the channels of each pixel (ALKDNet, section 3.3)."""
    dtype = _statistics_dtype(x)
    pixels = x.permute(0, 2, 3, 1).to(dtype)  # [N, H, W, C]
    y = F.layer_norm(pixels, (x.shape[1],), weight.to(dtype), bias.to(dtype), eps)
    y = y.to(x.dtype).permute(0, 3, 1, 2)
    # layer_norm writes channels last; give an NCHW caller NCHW back, as every other operator does.
    return y.contiguous() if x.is_contiguous() else y


def pointwise(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    *,
    shortcut: Tensor | None = None,
    activation: Activation = "none",
) -> Tensor:
    """act(conv1x1(cat(inputs, 1)) + shortcut): a 1x1 convolution of several maps as if they were concatenated."""
    x = inputs[0] if len(inputs) == 1 else torch.cat(tuple(inputs), 1)
    y = F.conv2d(x, weight, bias)
    return activate(y if shortcut is None else y + shortcut, activation)


def bsconv(
    x: Tensor,
    pw_weight: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    *,
    stride: int = 1,
    padding: int = 1,
    shortcut: Tensor | None = None,
    activation: Activation = "none",
) -> Tensor:
    """Blueprint separable convolution (BSConvU): act(dw3x3(pw1x1(x)) + shortcut)."""
    y = _depthwise(F.conv2d(x, pw_weight), dw_weight, dw_bias, stride, padding)
    return activate(y if shortcut is None else y + shortcut, activation)


def alk_conv(x: Tensor, weights: ALKConvWeights, *, eps: float = 1e-6, activation: Activation = "none") -> Tensor:
    """Asymmetric large-kernel convolution (ALKDNet, equation 11)."""
    w = weights
    u = F.conv2d(x, w.pw_weight)
    v = F.gelu(_depthwise(u, w.lora1_weight, w.lora1_bias))
    v = v + F.gelu(_depthwise(u, w.lora2_weight, w.lora2_bias))
    v = v + F.gelu(_depthwise(u, w.small_weight, w.small_bias))
    return activate(pixel_norm(v, w.norm_weight, w.norm_bias, eps), activation)


def alk_stage(
    x: Tensor, d_weight: Tensor, d_bias: Tensor, weights: ALKConvWeights, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """One distillation stage (ALKDNet, equation 7): GELU(1x1(x)) and GELU(alk_conv(x) + x)."""
    distilled = F.gelu(F.conv2d(x, d_weight, d_bias))
    return distilled, F.gelu(alk_conv(x, weights, eps=eps) + x)


def conv3x3_gelu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: Activation = "gelu",
    shortcut: Tensor | None = None,
) -> Tensor:
    """act(conv3x3(x)) + shortcut (MLRN, equations 1 and 2; RLFN's residual block with LeakyReLU)."""
    y = activate(F.conv2d(x, weight, bias, padding=1), activation)
    return y if shortcut is None else y + shortcut


def conv_mix(
    x: Tensor,
    shortcut: Tensor,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor,
    c5_weight: Tensor,
    c5_bias: Tensor,
    *,
    activation: Activation = "gelu",
) -> Tensor:
    """MLRN's convolution mixer with the 1x1 behind it (equations 3 to 5, without the ESA)."""
    mixed = x if dw_weight is None else activate(_depthwise(x, dw_weight, dw_bias), activation) + x
    mixed = activate(F.conv2d(mixed, pw_weight, pw_bias), activation)
    return F.conv2d(mixed + shortcut, c5_weight, c5_bias)


def _pooled(low: Tensor) -> Tensor:
    """The ESA's max-pooling. In exports by an old PyTorch the maxima of stride 1 are thinned out instead."""
    if _POOL_TIES_SIZES and exporting():
        return F.max_pool2d(low, ESA_POOL, 1)[:, :, ::ESA_POOL_STRIDE, ::ESA_POOL_STRIDE]
    return F.max_pool2d(low, ESA_POOL, ESA_POOL_STRIDE)


def esa(x: Tensor, weights: ESAWeights, *, conv2_padding: int = 0) -> Tensor:
    """Enhanced spatial attention, in RLFN's plain form or in BSRN's blueprint form, chosen by the weights' type.

    `conv2_padding` is the padding of the stride-2 convolution: 0 in RLFN, MLRN and BSRN, 1 in ALKDNet.
    """
    w = weights
    reduced = F.conv2d(x, w.conv1_weight, w.conv1_bias)
    if isinstance(w, PlainESAWeights):
        low = F.conv2d(reduced, w.conv2_weight, w.conv2_bias, stride=2, padding=conv2_padding)
        low = _pooled(low)
        low = F.conv2d(low, w.conv3_weight, w.conv3_bias, padding=1)
    else:
        low = bsconv(reduced, w.conv2_pw_weight, w.conv2_dw_weight, w.conv2_dw_bias, stride=2, padding=conv2_padding)
        low = _pooled(low)
        low = bsconv(low, w.conv_max_pw_weight, w.conv_max_dw_weight, w.conv_max_dw_bias, activation="gelu")
        low = bsconv(low, w.conv3_pw_weight, w.conv3_dw_weight, w.conv3_dw_bias, activation="gelu")
        low = bsconv(low, w.conv3__pw_weight, w.conv3__dw_weight, w.conv3__dw_bias)
    low = F.interpolate(low, x.shape[-2:], mode="bilinear", align_corners=False)
    gate = F.conv2d(low + F.conv2d(reduced, w.conv_f_weight, w.conv_f_bias), w.conv4_weight, w.conv4_bias)
    return x * torch.sigmoid(gate)


def _standard_deviation(centred: Tensor) -> Tensor:
    """Square root of the mean square over H and W, with gradient 0 (not NaN) where the map is constant."""
    variance = centred.square().mean((2, 3), keepdim=True)
    varies = variance > 0
    return torch.where(varies, torch.where(varies, variance, torch.ones_like(variance)).sqrt(), variance)


def cca_norm(
    x: Tensor,
    shortcut: Tensor,
    du0_weight: Tensor,
    du0_bias: Tensor,
    du2_weight: Tensor,
    du2_bias: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """Contrast-aware channel attention, pixel norm (left out without `norm_weight`) and the block's residual.

    The end of an ALKDB (ALKDNet, equations 9 and 10); without the norm, of BSRN's ESDB.
    """
    statistics = x.to(_statistics_dtype(x))
    mean = statistics.mean((2, 3), keepdim=True)
    contrast = (_standard_deviation(statistics - mean) + mean).to(x.dtype)  # [N, C, 1, 1]
    scale = F.conv2d(F.relu(F.conv2d(contrast, du0_weight, du0_bias)), du2_weight, du2_bias)
    y = x * torch.sigmoid(scale)
    if norm_weight is not None and norm_bias is not None:
        y = pixel_norm(y, norm_weight, norm_bias, eps)
    return y + shortcut


def upsample(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor | None,
    *,
    scale: int,
    residual: Residual = "none",
) -> Tensor:
    """pixel_shuffle(conv3x3(x)) plus a residual from the low-resolution image `lr`.

    "anchor" repeats every LR pixel over its scale x scale block (ALKDNet, equation 5); "bilinear" adds the
    bilinearly enlarged LR image (MLRN, equation 10); "none" adds nothing (BSRN, RLFN).
    """
    y = F.conv2d(x, weight, bias, padding=1)
    if residual == "anchor" and lr is not None:
        y = y + lr.repeat_interleave(scale * scale, dim=1)
    y = F.pixel_shuffle(y, scale)
    if residual == "bilinear" and lr is not None:
        y = y + F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
    return y
