"""The launches whose compiled code is held by gates: every kernel at the networks' shapes, one list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FP16 = torch.float16
FP32 = torch.float32
PORTABLE_SHARED = 99 * 1024  # of sm_86, sm_89 and sm_120


@dataclass(frozen=True)
class Case:
    """One call of a launcher, on tensors without memory.

    `run` gets the launchers' module. `channels` times the tile's pixels (BP) are the elements that instructions are
    counted by. `stack` and `shared` are how many bytes of each a kernel may use; forward kernels, but for one, may use
    no stack. `double` names the kernels that compute in float64 on purpose, `alone` those of which a multiprocessor
    holds one program only, with their most registers by architecture.
    """

    name: str
    operator: str
    run: Callable[[Any], Any]
    channels: int = 64
    stack: int = 0
    shared: int = PORTABLE_SHARED
    double: tuple[str, ...] = ()
    alone: dict[str, dict[int, int]] = field(default_factory=dict)
    architectures: tuple[int, ...] = (80, 90, 100, 120)


def image(channels: int = 64, n: int = 1, h: int = 360, w: int = 640, dtype: torch.dtype = FP16) -> Tensor:
    return torch.empty(n, channels, h, w, dtype=dtype, device="meta", memory_format=torch.channels_last)


def patches(channels: int = 64, dtype: torch.dtype = FP16) -> Tensor:
    return image(channels, 64, 48, 48, dtype)


def weight(*shape: int, dtype: torch.dtype = FP16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def mix_weights(dtype: torch.dtype) -> list[Tensor]:
    """Of conv_mix with MLRN's 58 channels."""
    shapes = ((58, 1, 3, 3), (58,), (58, 58, 1, 1), (58,), (58, 58, 1, 1), (58,))
    return [weight(*shape, dtype=dtype) for shape in shapes]


def large(taps: int, k: int = 64, dtype: torch.dtype = FP16) -> list[Tensor]:
    """Of alk_conv with 64 channels in and k out."""
    shapes = ((k, 64, 1, 1), (k, 1, taps, 1), (k,), (k, 1, 1, taps), (k,), (k, 1, 3, 3), (k,), (k,), (k,))
    return [weight(*shape, dtype=dtype) for shape in shapes]


def attention_weights() -> list[Tensor]:
    """Of cca_norm with 64 channels."""
    return [weight(*shape) for shape in ((4, 64, 1, 1), (4,), (64, 4, 1, 1), (64,))]


def esa_weights(channels: int, count: int) -> list[Tensor]:
    """Of esa's plain form (10) or blueprint form (18), with 16 channels inside."""
    small = [(16, 16, 3, 3), (16,)] * 2 if count == 10 else [(16, 16, 1, 1), (16, 1, 3, 3), (16,)] * 4
    shapes = [(16, channels, 1, 1), (16,), *small, (16, 16, 1, 1), (16,), (channels, 16, 1, 1), (channels,)]
    return [weight(*shape) for shape in shapes]


CASES: list[Case] = [
    Case("pixel_norm", "pixel_norm", lambda k: k.pixel_norm(image(), weight(64), weight(64), 1e-6)),
    Case(
        "pixel_norm_backward",
        "pixel_norm",
        lambda k: k.pixel_norm_backward(patches(), patches(), weight(64), 1e-6),
        stack=64,
    ),
    Case(
        "pointwise_c5", "pointwise", lambda k: k.pointwise([image(32)] * 4, weight(64, 128, 1, 1), weight(64), None, 0)
    ),
    Case("pointwise_c1", "pointwise", lambda k: k.pointwise([image()] * 8, weight(64, 512, 1, 1), weight(64), None, 1)),
    Case(
        "pointwise_backward",
        "pointwise",
        lambda k: k.pointwise_backward(patches(), [patches(32)] * 2, weight(64, 64, 1, 1), weight(64), None, 1),
        stack=64,
    ),
    Case(
        "bsconv",
        "bsconv",
        lambda k: k.bsconv(image(), weight(64, 64, 1, 1), weight(64, 1, 3, 3), weight(64), image(), 1),
    ),
    Case(
        "bsconv_backward",
        "bsconv",
        lambda k: k.bsconv_backward(
            patches(), patches(), weight(64, 64, 1, 1), weight(64, 1, 3, 3), weight(64), patches(), 1
        ),
        stack=64,
    ),
    Case(
        "conv3x3_gelu",
        "conv3x3_gelu",
        lambda k: k.conv3x3_gelu(image(), weight(64, 64, 3, 3), weight(64), image(), 1),
    ),
    Case(
        "conv3x3_gelu_58",
        "conv3x3_gelu",
        lambda k: k.conv3x3_gelu(image(58), weight(58, 58, 3, 3), weight(58), None, 1),
    ),
    Case(
        "conv3x3_gelu_float",
        "conv3x3_gelu",
        lambda k: k.conv3x3_gelu(
            image(58, dtype=FP32), weight(58, 58, 3, 3, dtype=FP32), weight(58, dtype=FP32), None, 1
        ),
        architectures=(80, 90),
    ),
    Case(
        "conv3x3_gelu_backward",
        "conv3x3_gelu",
        lambda k: k.conv3x3_gelu_backward(patches(58), patches(58), weight(58, 58, 3, 3), weight(58), 1, True),
        stack=64,
    ),
    Case(
        "conv3x3_gelu_backward_float",
        "conv3x3_gelu",
        lambda k: k.conv3x3_gelu_backward(
            patches(58, FP32), patches(58, FP32), weight(58, 58, 3, 3, dtype=FP32), weight(58, dtype=FP32), 1, True
        ),
        stack=64,
        architectures=(80, 90),
    ),
    Case("conv_mix", "conv_mix", lambda k: k.conv_mix(image(58), image(58), *mix_weights(FP16), 1)),
    Case(
        "conv_mix_float",
        "conv_mix",
        lambda k: k.conv_mix(image(58, dtype=FP32), image(58, dtype=FP32), *mix_weights(FP32), 1),
        architectures=(80, 90),
    ),
    Case(
        "conv_mix_backward",
        "conv_mix",
        lambda k: k.conv_mix_backward(patches(58), patches(58), patches(58), *mix_weights(FP16), 1),
        stack=64,
    ),
    Case(
        "conv_mix_backward_float",
        "conv_mix",
        lambda k: k.conv_mix_backward(*[patches(58, FP32)] * 3, *mix_weights(FP32), 1),
        stack=64,
        architectures=(80, 90),
    ),
    Case(
        "upsample",
        "upsample",
        lambda k: k.upsample(image(), weight(12, 64, 3, 3), weight(12), image(3), 2, 1),
    ),
    Case(
        "upsample_58_x4",
        "upsample",
        lambda k: k.upsample(image(58), weight(48, 58, 3, 3), weight(48), image(3), 4, 2),
        stack=8,  # on sm_120
    ),
    Case(
        "upsample_backward",
        "upsample",
        lambda k: k.upsample_backward(
            image(3, 64, 96, 96), patches(64), weight(12, 64, 3, 3), weight(12), patches(3), 2, 2, True
        ),
        stack=64,
    ),
    Case("esa_plain", "esa", lambda k: k.esa(image(58), esa_weights(58, 10), 0)),
    Case("esa_blueprint", "esa", lambda k: k.esa(image(), esa_weights(64, 18), 1)),
    Case(
        "esa_plain_backward",
        "esa",
        lambda k: k.esa_backward(patches(58), patches(58), esa_weights(58, 10), 0),
        stack=64,
    ),
    Case(
        "esa_blueprint_backward",
        "esa",
        lambda k: k.esa_backward(patches(64), patches(64), esa_weights(64, 18), 1),
        stack=64,
    ),
    Case(
        "esa_cca",
        "esa_cca",
        lambda k: k.esa_cca(
            image(), image(), esa_weights(64, 18), 1, *attention_weights(), weight(64), weight(64), 1e-5
        ),
        double=("channel_attention.attention_kernel",),
    ),
    Case(
        "cca_norm",
        "cca_norm",
        lambda k: k.cca_norm(image(), image(), *attention_weights(), weight(64), weight(64), 1e-5),
        double=("channel_attention.attention_kernel",),
    ),
    Case(
        "cca_norm_backward",
        "cca_norm",
        lambda k: k.cca_norm_backward(
            patches(), patches(), weight(64, 2, 64, dtype=torch.float64), *attention_weights(), weight(64), 1e-5
        ),
        stack=64,
        double=("channel_attention.scale_kernel", "channel_attention.attention_backward_kernel"),
    ),
    Case(
        "alk_conv",
        "alk_conv",
        lambda k: k.alk_conv(image(), *large(9, 32), 1e-6, 1),
        channels=32,
        alone={"alk_toeplitz.mix_kernel": {80: 168, 90: 160, 100: 152}},
    ),
    Case(
        "alk_conv_3",
        "alk_conv",
        lambda k: k.alk_conv(image(), *large(3), 1e-6, 0),
        alone={"alk_toeplitz.mix_kernel": {80: 192, 90: 192, 100: 184}},
    ),
    Case(
        "alk_stage",
        "alk_stage",
        lambda k: k.alk_stage(image(), weight(32, 64, 1, 1), weight(32), *large(9), 1e-6),
        alone={"alk_toeplitz.mix_kernel": {80: 192, 90: 192, 100: 184}},
    ),
    Case(
        "alk_stage_31_taps",
        "alk_stage",
        lambda k: k.alk_stage(image(), weight(32, 64, 1, 1), weight(32), *large(31), 1e-6),
    ),
    Case(
        "alk_conv_31_taps_backward",
        "alk_conv",
        lambda k: k.alk_conv_backward(patches(), patches(), *large(31), 1e-6, 0),
        stack=64,
        architectures=(80, 90),
    ),
    Case(
        "alk_stage_float",
        "alk_stage",
        lambda k: k.alk_stage(
            image(dtype=FP32), weight(32, 64, 1, 1, dtype=FP32), weight(32, dtype=FP32), *large(9, dtype=FP32), 1e-6
        ),
    ),
    Case(
        "alk_stage_backward",
        "alk_stage",
        lambda k: k.alk_stage_backward(
            patches(32), patches(), patches(), weight(32, 64, 1, 1), weight(32), *large(9), 1e-6
        ),
        stack=64,
    ),
]
