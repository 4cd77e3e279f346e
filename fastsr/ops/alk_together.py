"""alk_pack_together: the weights of many ALKConvs, in the order in which the CUDA C++ kernels read them, by one launch.

For inference with weights that may change from call to call. Whoever calls an operator on its own needs nothing of
this: it packs by a launch in front.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastsr._dispatch import fusing_backend, select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._alk_packed import packed_bytes
from fastsr.ops._define import define_inference, fuses_on_cuda
from fastsr.ops.alk_condense import DISTILLED, check_condense_weights, condense_sizes, fits_condense
from fastsr.ops.alk_conv import check_weights, fits_cuda
from fastsr.ops.alk_stage import check_stage_weights
from fastsr.reference import ALKConvWeights

# A convolution and what its operator takes beside: nothing (alk_conv), d_weight and d_bias (alk_stage), or c5_weight,
# c5_bias, conv1_weight and conv1_bias (alk_condense).
ALKPart = tuple[ALKConvWeights, tuple[Tensor, ...]]
_OPERATORS = {0: "alk_conv", 2: "alk_stage", 4: "alk_condense"}  # by the number of these


def _fake(weights: list[Tensor], counts: list[int]) -> list[Tensor]:
    packed, first = [], 0
    for count in counts:
        pw_weight, lora1_weight, *_ = part = weights[first : first + count]
        beside = part[len(ALKConvWeights._fields) :]
        d, condenses = 0, None
        if len(beside) == 2:
            d = beside[0].shape[0]
        elif beside:
            outputs, inputs = beside[0].shape[:2]
            condenses = ((inputs - pw_weight.shape[0]) // DISTILLED, outputs)
        k, c = pw_weight.shape[:2]
        size = packed_bytes(pw_weight.dtype, c, k, lora1_weight.shape[2], d, condenses=condenses)
        packed.append(torch.empty(size, dtype=torch.uint8, device=pw_weight.device))
        first += count
    return packed


# `counts` are the tensors of each part: 9 and those beside.
define_inference("alk_pack_together", "(Tensor[] weights, int[] counts) -> Tensor[]", _fake)


def _is_read(x: Tensor, weights: ALKConvWeights, beside: tuple[Tensor, ...]) -> bool:
    """Whether the operator of this part would read packed weights on maps like x.

    It would not with weights that do not fit, and says what is wrong with them when it is called.
    """
    op = _OPERATORS[len(beside)]
    try:
        if op == "alk_conv":
            check_weights(op, x, weights)
        elif op == "alk_stage":
            check_stage_weights(op, x, weights, *beside)
        else:
            check_condense_weights(op, x, weights, *beside)
    except InputError:
        return False
    if weights.pw_weight.dtype != x.dtype:
        return False
    if op == "alk_condense":
        fits = fits_condense(*condense_sizes(weights, beside[0], beside[2]))
        return fits and fusing_backend(op, x, ("cuda",), (*weights, *beside)) is not None
    return fits_cuda(weights.pw_weight, weights.lora1_weight) and select(op, x) == "cuda"


def pack_alk_together(x: Tensor, parts: Sequence[ALKPart]) -> list[Tensor | None]:
    """The weights of many ALKConvs for `packed` of `alk_conv`, `alk_stage` and `alk_condense`, by one launch.

    Args:
        x: a map like those that the convolutions will be given: of their channels in, device, dtype and size.
        parts: of each convolution its weights, and what its operator takes beside.

    Returns:
        For each part bytes for maps of the dtype of `x`, a copy: later changes of the weights do not reach it. None
        where the operator would not read them: without CUDA C++, with autograd, where Triton goes first, under autocast
        with weights of another dtype.

    Raises:
        InputError: `x` is no map, or what stands beside a convolution is not as many tensors as an operator takes.
    """
    _checks.feature_map("pack_alk_together", x)
    wrong = next((len(beside) for _, beside in parts if len(beside) not in _OPERATORS), None)
    if wrong is not None:
        raise InputError(f"pack_alk_together: {wrong} tensors stand beside a convolution; pass none, 2 or 4")
    tensors = [[*weights, *beside] for weights, beside in parts]
    if not tensors or not fuses_on_cuda("alk_conv", x, *(t for part in tensors for t in part)):
        return [None] * len(parts)
    read = [_is_read(x, *part) for part in parts]
    chosen = [part for part, is_read in zip(tensors, read, strict=True) if is_read]
    if not chosen:
        return [None] * len(parts)
    flat = [t for part in chosen for t in part]
    packed = iter(torch.ops.fastsr.alk_pack_together(flat, [len(part) for part in chosen]))
    return [next(packed) if is_read else None for is_read in read]
