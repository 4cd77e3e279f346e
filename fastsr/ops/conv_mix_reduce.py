"""conv_mix_reduce: `conv_mix` and the 1x1 convolution with which the ESA behind it begins, on a GPU in one operator.

Like `mixer_block` a fusion and not an operator with backends to choose: where CUDA C++ does not go first, and
with autograd, it is `conv_mix`, and the ESA begins as usual.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import _cuda
from fastsr._dispatch import fusing_backend
from fastsr.ops import _checks
from fastsr.ops._define import define_inference, empty_map
from fastsr.ops.conv_mix import MOST, conv_mix
from fastsr.ops.esa import empty_reduced
from fastsr.reference import Activation

MAX_REDUCED = 16  # csrc/cuda/conv_mix_reduce.h


def _fake(x: Tensor, shortcut: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    c5_weight, _, conv1_weight = rest[4:7]
    return empty_map(x, c5_weight.shape[0]), empty_reduced(x, conv1_weight.shape[0])


_SCHEMA = (
    "(Tensor x, Tensor shortcut, Tensor? dw_weight, Tensor? dw_bias, Tensor pw_weight, Tensor pw_bias, "
    "Tensor c5_weight, Tensor c5_bias, Tensor conv1_weight, Tensor conv1_bias, int activation) -> (Tensor, Tensor)"
)
define_inference("conv_mix_reduce", _SCHEMA, _fake)
_cuda.define_fusion("conv_mix_reduce", _SCHEMA)


def conv_mix_reduce(
    x: Tensor,
    shortcut: Tensor,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor,
    c5_weight: Tensor,
    c5_bias: Tensor,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    *,
    activation: Activation = "gelu",
) -> tuple[Tensor, Tensor | None]:
    """conv_mix, and the first step of the ESA behind it (MLRN, section 3.1, equations 3 to 5).

    Args:
        x, shortcut, dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias, activation: as for `conv_mix`, with K
            channels out.
        conv1_weight, conv1_bias: of the ESA, [F, K, 1, 1] and [F].

    Returns:
        [N, K, H, W] in the dtype of `x`, and what `esa` takes as `reduced`: conv1 of it, or None.

    Raises:
        InputError: a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    mix = (dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias)
    _checks.feature_map("conv_mix_reduce", x)
    _checks.same_shape("conv_mix_reduce", x, shortcut, "shortcut")
    _checks.mix_weights("conv_mix_reduce", x, *mix)
    channels = c5_weight.shape[0]
    _checks.weight("conv_mix_reduce", x, conv1_weight, "conv1_weight", (None, channels, 1, 1))
    inner = conv1_weight.shape[0]
    _checks.weight("conv_mix_reduce", x, conv1_bias, "conv1_bias", (inner,))
    _checks.choice("conv_mix_reduce", activation, "activation", _checks.ACTIVATIONS)
    fits = max(x.shape[1], channels) <= MOST["cuda"]["channels"] and inner <= MAX_REDUCED and shortcut.dtype == x.dtype
    others = (shortcut, *mix, conv1_weight, conv1_bias)
    if not fits or fusing_backend("conv_mix_reduce", x, ("cuda",), others) is None:
        return conv_mix(x, shortcut, *mix, activation=activation), None
    code = _checks.ACTIVATIONS.index(activation)
    y, reduced = torch.ops.fastsr.conv_mix_reduce(x, shortcut, *mix, conv1_weight, conv1_bias, code)
    return y, reduced
