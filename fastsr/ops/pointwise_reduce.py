"""pointwise_reduce: `pointwise` and the 1x1 convolution with which the ESA behind it begins, on a GPU in one operator.

Like `mixer_block` a fusion and not an operator with backends to choose: where CUDA C++ does not go first, and
with autograd, it is `pointwise`, and the ESA begins as usual.
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
from fastsr.ops.esa import empty_reduced
from fastsr.ops.pointwise import CUDA_MAX_INPUTS, check_inputs, pointwise

MAX_TO, MAX_REDUCED = 64, 32  # csrc/cuda/pointwise_reduce.h


def _fake(
    inputs: list[Tensor], weight: Tensor, bias: Tensor, conv1_weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return _fake_packed(inputs, weight, weight.shape[0], conv1_weight.shape[0])


def _fake_packed(inputs: list[Tensor], packed: Tensor, channels: int, inner: int, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_map(inputs[0], channels), empty_reduced(inputs[0], inner)


_WEIGHTS = "Tensor weight, Tensor bias, Tensor conv1_weight, Tensor conv1_bias"
_SCHEMA = f"(Tensor[] inputs, {_WEIGHTS}) -> (Tensor, Tensor)"
_PACKED_SCHEMA = "(Tensor[] inputs, Tensor packed, int channels, int inner) -> (Tensor, Tensor)"
define_inference("pointwise_reduce", _SCHEMA, _fake)
define_inference("pointwise_reduce_packed", _PACKED_SCHEMA, _fake_packed)
_cuda.define_fusion("pointwise_reduce", _SCHEMA)
_cuda.define_fusion("pointwise_reduce_packed", _PACKED_SCHEMA)
LIB.define(f"pointwise_reduce_pack({_WEIGHTS}, int[] channels) -> Tensor")


def _check_weights(
    op: str, x: Tensor, channels: int, weight: Tensor, bias: Tensor, conv1_weight: Tensor, conv1_bias: Tensor
) -> None:
    """They must fit one another and maps like `x` with so many channels together."""
    _checks.weight(op, x, weight, "weight", (None, channels, 1, 1))
    _checks.weight(op, x, bias, "bias", (weight.shape[0],))
    _checks.weight(op, x, conv1_weight, "conv1_weight", (None, weight.shape[0], 1, 1))
    _checks.weight(op, x, conv1_bias, "conv1_bias", (conv1_weight.shape[0],))


def _fits(maps: int, weight: Tensor, conv1_weight: Tensor) -> bool:
    return maps <= CUDA_MAX_INPUTS and weight.shape[0] <= MAX_TO and conv1_weight.shape[0] <= MAX_REDUCED


def pack_pointwise_reduce(
    weight: Tensor, bias: Tensor, conv1_weight: Tensor, conv1_bias: Tensor, channels: Sequence[int]
) -> Tensor | None:
    """Weights in the order in which the kernel reads them, for `packed` of `pointwise_reduce`.

    Args:
        weight, bias, conv1_weight, conv1_bias: as there.
        channels: of each of the inputs.

    Returns:
        Bytes for maps of the weights' dtype and of these channels, or None where no kernel can take these weights. It
        is a copy: later changes of the weights do not reach it.

    Raises:
        InputError: a wrong rank, shape, dtype or device, or other channels than the weight has.
    """
    op = "pack_pointwise_reduce"
    _checks.feature_map(op, weight, "weight")
    is_sequence = isinstance(channels, (list, tuple))
    if not is_sequence or not all(isinstance(c, int) and c > 0 for c in channels):
        given = list(channels) if is_sequence else f"a {type(channels).__name__}"
        raise InputError(f"{op}: channels is {given}; pass the inputs' numbers of channels as a sequence")
    _check_weights(op, weight, sum(channels), weight, bias, conv1_weight, conv1_bias)
    with torch.no_grad():
        if not _fits(len(channels), weight, conv1_weight) or not fuses_on_cuda("pointwise", weight):
            return None
        packed: Tensor = torch.ops.fastsr.pointwise_reduce_pack(weight, bias, conv1_weight, conv1_bias, list(channels))
        return packed


def pointwise_reduce(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    *,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """conv1x1(cat(inputs, 1)), and the first step of the ESA behind it (RLFN, section 3.2; BSRN, section 3.3).

    Args:
        inputs: one or more [N, C_i, H, W] maps of one dtype.
        weight, bias: [K, sum of C_i, 1, 1] and [K].
        conv1_weight, conv1_bias: of the ESA, [F, K, 1, 1] and [F].
        packed: what `pack_pointwise_reduce` made of all weights, for inputs of these channels; used where its kernel
            runs.

    Returns:
        [N, K, H, W] in the dtype of the inputs, and what `esa` and `esa_cca` take as `reduced`: conv1 of it, or None.

    Raises:
        InputError: no input, a wrong rank, shape, dtype or device.
        BackendError: a backend is forced that cannot run this.
    """
    check_inputs("pointwise_reduce", inputs)
    head, channels = inputs[0], sum(x.shape[1] for x in inputs)
    weights = (weight, bias, conv1_weight, conv1_bias)
    _checks.packed("pointwise_reduce", packed)
    _check_weights("pointwise_reduce", head, channels, *weights)
    fits = _fits(len(inputs), weight, conv1_weight) and all(x.dtype == head.dtype for x in inputs)
    if not fits or fusing_backend("pointwise_reduce", head, ("cuda",), (*inputs, *weights)) is None:
        return pointwise(inputs, weight, bias), None
    if packed is not None and packed.device == head.device and weight.dtype == head.dtype:
        run, inner = torch.ops.fastsr.pointwise_reduce_packed, conv1_weight.shape[0]
        y, reduced = run(list(inputs), packed, weight.shape[0], inner)
    else:
        y, reduced = torch.ops.fastsr.pointwise_reduce(list(inputs), *weights)
    return y, reduced
