"""The launches whose compiled code is held by gates: every kernel at the networks' shapes, one list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FP16 = torch.float16
PORTABLE_SHARED = 99 * 1024  # of sm_86, sm_89 and sm_120


@dataclass(frozen=True)
class Case:
    """One call of a launcher, on tensors without memory.

    `run` gets the launchers' module. `channels` times the tile's pixels (BP) are the elements that instructions are
    counted by. `stack` and `shared` are how many bytes of each a kernel may use; forward kernels may use no
    stack.
    """

    name: str
    operator: str
    run: Callable[[Any], Any]
    channels: int = 64
    stack: int = 0
    shared: int = PORTABLE_SHARED
    architectures: tuple[int, ...] = (80, 90, 100, 120)


def image(channels: int = 64, n: int = 1, h: int = 360, w: int = 640, dtype: torch.dtype = FP16) -> Tensor:
    return torch.empty(n, channels, h, w, dtype=dtype, device="meta", memory_format=torch.channels_last)


def patches(channels: int = 64, dtype: torch.dtype = FP16) -> Tensor:
    return image(channels, 64, 48, 48, dtype)


def weight(*shape: int, dtype: torch.dtype = FP16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def separable() -> list[Tensor]:
    return [weight(64, 64, 1, 1), weight(64, 1, 3, 3), weight(64)]


def large(taps: int) -> list[Tensor]:
    shapes = ((64, 64, 1, 1), (64, 1, taps, 1), (64,), (64, 1, 1, taps), (64,), (64, 1, 3, 3), (64,), (64,), (64,))
    return [weight(*shape) for shape in shapes]


CASES: list[Case] = [
    Case("pixel_norm", "pixel_norm", lambda k: k.pixel_norm(image(), weight(64), weight(64), 1e-6)),
    Case(
        "pixel_norm_backward",
        "pixel_norm",
        lambda k: k.pixel_norm_backward(patches(), patches(), weight(64), 1e-6),
        stack=64,
    ),
    Case("pointwise_c5", "pointwise", lambda k: k.pointwise([image(32)] * 4, weight(64, 128, 1, 1), weight(64), 0)),
    Case("pointwise_c1", "pointwise", lambda k: k.pointwise([image()] * 8, weight(64, 512, 1, 1), weight(64), 1)),
    Case(
        "pointwise_backward",
        "pointwise",
        lambda k: k.pointwise_backward(patches(), [patches(32)] * 2, weight(64, 64, 1, 1), weight(64), 1),
        stack=64,
    ),
    Case(
        "bsconv",
        "bsconv",
        lambda k: k.bsconv(image(12), weight(64, 12, 1, 1), weight(64, 1, 3, 3), weight(64), None, 0),
    ),
    Case(
        "bsconv_backward",
        "bsconv",
        lambda k: k.bsconv_backward(patches(), patches(), *separable(), patches(), 1),
        stack=64,
    ),
    Case("alk_stage", "alk_stage", lambda k: k.alk_stage(image(), weight(32, 64, 1, 1), weight(32), *large(9), 1e-6)),
    Case("alk_conv_3", "alk_conv", lambda k: k.alk_conv(image(), *large(3), 1e-6, 0)),
    Case(
        "alk_stage_backward",
        "alk_stage",
        lambda k: k.alk_stage_backward(
            patches(32), patches(), patches(), weight(32, 64, 1, 1), weight(32), *large(9), 1e-6
        ),
        stack=64,
    ),
]
