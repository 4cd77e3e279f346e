"""The calls that `fastsr tune` measures: every operator at the networks' shapes, for inference and for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.ops import ALKConvWeights, BlueprintESAWeights, PlainESAWeights

IMAGE = (1, 360, 640)  # batch, height, width
PATCHES = (64, 48, 48)

Shapes = list[tuple[int, ...]]


def _large(k: int, taps: int) -> Shapes:
    return [(k, 64, 1, 1), (k, 1, taps, 1), (k,), (k, 1, 1, taps), (k,), (k, 1, 3, 3), (k,), (k,), (k,)]


def _esa(c: int, inner: Shapes) -> Shapes:
    return [(16, c, 1, 1), (16,), *inner, (16, 16, 1, 1), (16,), (c, 16, 1, 1), (c,)]


_PLAIN: Shapes = [(16, 16, 3, 3), (16,)] * 2
_BLUEPRINT: Shapes = [(16, 16, 1, 1), (16, 1, 3, 3), (16,)] * 4
_ATTENTION: Shapes = [(4, 64, 1, 1), (4,), (64, 4, 1, 1), (64,), (64,), (64,)]
_MIX: Shapes = [(58, 1, 3, 3), (58,), (58, 58, 1, 1), (58,), (58, 58, 1, 1), (58,)]

# Per operator: channels of its maps, shapes of its weights, and the call on maps and weights.
CALLS: dict[str, list[tuple[list[int], Shapes, Callable[[list[Tensor], list[Tensor]], Any]]]] = {
    "alk_conv": [
        ([64], _large(32, 9), lambda m, w: ops.alk_conv(m[0], ALKConvWeights(*w), activation="gelu")),
        ([64], _large(64, 3), lambda m, w: ops.alk_conv(m[0], ALKConvWeights(*w))),
    ],
    "alk_stage": [
        (
            [64],
            [(32, 64, 1, 1), (32,), *_large(64, 9)],
            lambda m, w: ops.alk_stage(m[0], w[0], w[1], ALKConvWeights(*w[2:])),
        )
    ],
    "bsconv": [([12], [(64, 12, 1, 1), (64, 1, 3, 3), (64,)], lambda m, w: ops.bsconv(m[0], *w))],
    "cca_norm": [([64, 64], _ATTENTION, lambda m, w: ops.cca_norm(*m, *w))],
    "conv3x3_gelu": [([58], [(58, 58, 3, 3), (58,)], lambda m, w: ops.conv3x3_gelu(m[0], *w))],
    "conv_mix": [([58, 58], _MIX, lambda m, w: ops.conv_mix(*m, *w))],
    "esa": [
        ([58], _esa(58, _PLAIN), lambda m, w: ops.esa(m[0], PlainESAWeights(*w))),
        ([64], _esa(64, _BLUEPRINT), lambda m, w: ops.esa(m[0], BlueprintESAWeights(*w), conv2_padding=1)),
    ],
    "pixel_norm": [([64], [(64,), (64,)], lambda m, w: ops.pixel_norm(m[0], w[0], w[1]))],
    "pointwise": [
        ([32] * 4, [(64, 128, 1, 1), (64,)], lambda m, w: ops.pointwise(m, *w)),
        ([64] * 8, [(64, 512, 1, 1), (64,)], lambda m, w: ops.pointwise(m, *w, activation="gelu")),
    ],
    "upsample": [
        (
            [64, 3],
            [(12, 64, 3, 3), (12,)],
            lambda m, w: ops.upsample(m[0], w[0], w[1], m[1], scale=2, residual="anchor"),
        )
    ],
}


def workloads(operator: str, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and calls of `operator` with random tensors: the forward of an image, forward and backward of patches."""
    for channels, shapes, function in CALLS[operator]:
        for (n, h, w), training in ((IMAGE, False), (PATCHES, True)):
            generator = torch.Generator(device).manual_seed(0)

            def random(*shape: int, generator: torch.Generator = generator) -> Tensor:
                return torch.randn(shape, device=device, generator=generator).to(dtype)

            maps = [random(n, c, h, w).contiguous(memory_format=torch.channels_last) for c in channels]
            weights = [random(*shape) / max(1, shape[1] if len(shape) > 1 else 4) ** 0.5 for shape in shapes]
            yield f"{operator} {channels} {n}x{h}x{w}", _call(function, maps, weights, training)


def _call(function: Callable[..., Any], maps: list[Tensor], weights: list[Tensor], training: bool) -> Callable[[], Any]:
    def forward() -> Any:
        with torch.no_grad(), fastsr.backend("triton"):
            return function(maps, weights)

    def forward_and_backward() -> Any:
        leaves = [t.detach().requires_grad_() for t in (*maps, *weights)]
        with fastsr.backend("triton"):
            out = function(leaves[: len(maps)], leaves[len(maps) :])
            outputs = out if isinstance(out, tuple) else (out,)
            return outputs, torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs])

    return forward_and_backward if training else forward
