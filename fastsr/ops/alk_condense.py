"""alk_condense: the last ALKConv of a distillation block and the 1x1 over its four maps, on a GPU in one operator.

Like `mixer_block` a fusion and not an operator with backends to choose: where CUDA C++ does not go first, and with
autograd, `alk_conv` and `pointwise` run one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsr import _cuda
from fastsr._dispatch import fusing_backend
from fastsr._native import LIB
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._define import define_inference, empty_map, fuses_on_cuda
from fastsr.ops.alk_conv import WEIGHTS_SCHEMA, alk_conv, check_weights
from fastsr.ops.esa import empty_reduced
from fastsr.ops.pointwise import pointwise
from fastsr.reference import ALKConvWeights

DISTILLED = 3  # maps
MAX_TAPS, MAX_FROM, MAX_TO, MAX_REDUCED = 9, 32, 64, 32  # csrc/cuda/alk_condense.h


def _fake(x: Tensor, maps: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    c5_weight, _, conv1_weight, _ = rest[9:13]
    return empty_map(x, c5_weight.shape[0]), empty_reduced(x, conv1_weight.shape[0])


def _fake_packed(
    x: Tensor, maps: list[Tensor], packed: Tensor, channels: int, taps: int, outputs: int, inner: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    return empty_map(x, outputs), empty_reduced(x, inner)


_WEIGHTS = f"{WEIGHTS_SCHEMA}, Tensor c5_weight, Tensor c5_bias, Tensor conv1_weight, Tensor conv1_bias"
_SCHEMA = f"(Tensor x, Tensor[] maps, {_WEIGHTS}, float eps) -> (Tensor, Tensor)"
_PACKED = (
    "(Tensor x, Tensor[] maps, Tensor packed, int channels, int taps, int outputs, int inner, float eps) "
    "-> (Tensor, Tensor)"
)
LIB.define(f"alk_condense_pack({_WEIGHTS}) -> Tensor")
define_inference("alk_condense", _SCHEMA, _fake)
define_inference("alk_condense_packed", _PACKED, _fake_packed)
_cuda.define_fusion("alk_condense", _SCHEMA)
_cuda.define_fusion("alk_condense_packed", _PACKED)


def condense_sizes(weights: ALKConvWeights, c5_weight: Tensor, conv1_weight: Tensor) -> tuple[int, int, int, int]:
    """Taps and channels out of the convolution, of c5 and of conv1."""
    return weights.lora1_weight.shape[2], weights.pw_weight.shape[0], c5_weight.shape[0], conv1_weight.shape[0]


def fits_condense(taps: int, channels: int, outputs: int, inner: int) -> bool:
    """Whether the kernel takes weights of these sizes, those of `condense_sizes`."""
    return taps <= MAX_TAPS and channels <= MAX_FROM and outputs <= MAX_TO and inner <= MAX_REDUCED


def check_condense_weights(
    op: str,
    x: Tensor,
    weights: ALKConvWeights,
    c5_weight: Tensor,
    c5_bias: Tensor,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    *,
    distilled: int | None = None,
) -> None:
    """The weights must fit one another, `x` and maps of `distilled` channels, by default of any number."""
    check_weights(op, x, weights)
    channels = weights.pw_weight.shape[0]
    if distilled is None:
        _checks.weight(op, x, c5_weight, "c5_weight", (None, None, 1, 1))
        distilled = max(1, (c5_weight.shape[1] - channels) // DISTILLED)
    _checks.weight(op, x, c5_weight, "c5_weight", (None, DISTILLED * distilled + channels, 1, 1))
    outputs = c5_weight.shape[0]
    _checks.weight(op, x, c5_bias, "c5_bias", (outputs,))
    _checks.weight(op, x, conv1_weight, "conv1_weight", (None, outputs, 1, 1))
    _checks.weight(op, x, conv1_bias, "conv1_bias", (conv1_weight.shape[0],))


def _fuses(x: Tensor, maps: Sequence[Tensor], weights: ALKConvWeights, rest: tuple[Tensor, ...]) -> bool:
    """Whether these are one operator; what is wrong with them is said where they are not."""
    tensors = isinstance(maps, (list, tuple)) and all(isinstance(t, Tensor) for t in (*maps, *rest))
    if not tensors or not isinstance(weights, ALKConvWeights) or len(maps) != DISTILLED:
        return False
    if any(d.shape != maps[0].shape or d.dtype != x.dtype for d in maps):
        return False
    fits = fits_condense(*condense_sizes(weights, rest[0], rest[2]))
    return fits and fusing_backend("alk_condense", x, ("cuda",), (*maps, *weights, *rest)) is not None


def pack_alk_condense(
    weights: ALKConvWeights, c5_weight: Tensor, c5_bias: Tensor, conv1_weight: Tensor, conv1_bias: Tensor
) -> Tensor | None:
    """Weights in the order in which the kernel reads them, for `packed` of `alk_condense`.

    Returns:
        Bytes for maps of the weights' dtype, or None where no kernel can take these weights. It is a copy: later
        changes of the weights do not reach it.
    """
    with torch.no_grad():
        fits = fits_condense(*condense_sizes(weights, c5_weight, conv1_weight))
        if not fits or not fuses_on_cuda("alk_conv", weights.pw_weight):
            return None
        packed: Tensor = torch.ops.fastsr.alk_condense_pack(*weights, c5_weight, c5_bias, conv1_weight, conv1_bias)
        return packed


def alk_condense(
    x: Tensor,
    maps: Sequence[Tensor],
    weights: ALKConvWeights,
    c5_weight: Tensor,
    c5_bias: Tensor,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    *,
    eps: float = 1e-6,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """c5 of three distilled maps and GELU(alk_conv(x)), side by side (ALKDNet, section 3.2, equations 7 and 8).

    Args:
        x: [N, C, H, W], the refined map of the third stage.
        maps: the three distilled ones, [N, D, H, W].
        weights, eps: of the convolution, as for `alk_conv`, with K channels out.
        c5_weight, c5_bias: [M, 3 D + K, 1, 1] and [M].
        conv1_weight, conv1_bias: of the ESA that follows, [F, M, 1, 1] and [F].
        packed: what `pack_alk_condense` made of all weights; used where its kernel runs.

    Returns:
        The condensed map [N, M, H, W] in the dtype of `x`, and what `esa_cca` takes as `reduced`: conv1 of it, or None.

    Raises:
        InputError: a wrong number of maps, rank, shape, dtype or device.
        BackendError: a backend is forced that cannot run this.
    """
    rest = (c5_weight, c5_bias, conv1_weight, conv1_bias)
    _checks.feature_map("alk_condense", x)
    _checks.packed("alk_condense", packed)
    if not _fuses(x, maps, weights, rest):
        _checks.weight("alk_condense", x, c5_weight, "c5_weight", (None, None, 1, 1))
        _checks.weight("alk_condense", x, conv1_weight, "conv1_weight", (None, c5_weight.shape[0], 1, 1))
        _checks.weight("alk_condense", x, conv1_bias, "conv1_bias", (conv1_weight.shape[0],))
        if not isinstance(maps, (list, tuple)):
            raise InputError(f"alk_condense: maps is a {type(maps).__name__}; pass the distilled maps as a sequence")
        last = alk_conv(x, weights, eps=eps, activation="gelu")
        return pointwise((*maps, last), c5_weight, c5_bias), None
    _checks.feature_map("alk_condense", maps[0], "a distilled map")
    _checks.weight("alk_condense", x, maps[0], "a distilled map", (x.shape[0], None, *x.shape[2:]))
    distilled = maps[0].shape[1]
    taps, channels, outputs, inner = condense_sizes(weights, c5_weight, conv1_weight)
    if packed is not None and packed.device == x.device and c5_weight.dtype == x.dtype:
        # The kernel sees how many blocks of 32 channels were packed, but not how many channels.
        _checks.weight("alk_condense", x, weights.pw_weight, "pw_weight", (None, x.shape[1], 1, 1))
        _checks.weight("alk_condense", x, c5_weight, "c5_weight", (None, DISTILLED * distilled + channels, 1, 1))
        run = torch.ops.fastsr.alk_condense_packed
        return run(x, list(maps), packed, channels, taps, outputs, inner, eps)
    check_condense_weights("alk_condense", x, weights, *rest, distilled=distilled)
    return torch.ops.fastsr.alk_condense(x, list(maps), *weights, *rest, eps)
