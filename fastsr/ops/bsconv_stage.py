"""bsconv_stage: BSRN's distillation stage, its 1x1 and its blueprint convolution, in one pass over the map.

A fusion, not an operator with backends to choose: it runs where `bsconv` would run in C++ on the CPU, without autograd,
or in CUDA C++. Elsewhere `pointwise` and `bsconv` run one behind the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import _cuda
from fastsr._dispatch import fusing_backend, records, select
from fastsr._native import LIB
from fastsr.ops import _checks
from fastsr.ops._define import define, empty_map, takes_packed
from fastsr.ops.bsconv import MAX_CHANNELS, bsconv
from fastsr.ops.pointwise import pointwise


def _fake(x: Tensor, d_weight: Tensor, d_bias: Tensor, pw_weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_map(x, d_weight.shape[0]), empty_map(x, pw_weight.shape[0])


def _fake_backward(grad_distilled: Tensor, grad_refined: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return (empty_map(x, x.shape[1]), *(torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_distilled: Tensor, grad_refined: Tensor) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor, ...] = ctx.call_backward(grad_distilled, grad_refined, *ctx.saved_tensors)
    return gradients


def _cpu_backward(
    grad_distilled: Tensor, grad_refined: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor, *weights: Tensor
) -> tuple[Tensor, ...]:
    """By the operators' own, for inference that was traced: training calls those themselves."""
    gelu = _checks.ACTIVATIONS.index("gelu")
    (dx,), *d_distil, _ = torch.ops.fastsr.pointwise_backward(grad_distilled, [x], d_weight, d_bias, None, gelu)
    refined, *d_weights, d_shortcut = torch.ops.fastsr.bsconv_backward(grad_refined, x, *weights, x, gelu)
    return (refined + d_shortcut + dx, *d_distil, *d_weights)


_INPUTS = "Tensor x, Tensor d_weight, Tensor d_bias, Tensor pw_weight, Tensor dw_weight, Tensor dw_bias"
SCHEMA = f"({_INPUTS}) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = f"(Tensor grad_distilled, Tensor grad_refined, {_INPUTS}) -> ({', '.join(['Tensor'] * 6)})"

_call = define(
    "bsconv_stage",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
LIB.impl("bsconv_stage_backward", _cpu_backward, "CPU")
_cuda.define_fusion("bsconv_stage", SCHEMA)
_cuda.define_fusion("bsconv_stage_backward", BACKWARD_SCHEMA)


def _fusing_backend(tensors: tuple[Tensor, ...]) -> str | None:
    """The backend that runs both halves of these in one pass, or None."""
    x, *others = tensors
    d_weight, pw_weight, dw_weight = tensors[1], tensors[3], tensors[4]
    if not all(isinstance(t, Tensor) for t in tensors) or dw_weight.shape[2:] != (3, 3):
        return None  # `pointwise` and `bsconv` say what is wrong, if anything is
    backend = select("bsconv", x, None, others)
    if backend == "cpu":
        return None if records(*tensors) else backend
    fits = max(*pw_weight.shape[:2], d_weight.shape[0]) <= MAX_CHANNELS
    return fusing_backend("bsconv_stage", x, ("cuda",) if fits else (), others, trained=True)


def bsconv_stage(
    x: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
    pw_weight: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    *,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """GELU(conv1x1(x)) and GELU(bsconv(x) + x): the distilled and the refined half (BSRN, section 3.3).

    Args:
        x: [N, C, H, W].
        d_weight, d_bias: [D, C, 1, 1] and [D].
        pw_weight, dw_weight, dw_bias: as for `bsconv`, from C to C channels with a 3x3 kernel.
        packed: what `pack_bsconv` made of all weights; used where the CPU kernel runs without autograd.

    Returns:
        [N, D, H, W] and [N, C, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("bsconv_stage", x)
    c = x.shape[1]
    tensors = (x, d_weight, d_bias, pw_weight, dw_weight, dw_bias)
    if takes_packed("bsconv", packed, x, pw_weight, d_weight, d_bias, dw_weight, dw_bias):
        distilled, refined = torch.ops.fastsr.bsconv_stage_packed(x, packed, d_weight.shape[0])
        return distilled, refined
    backend = _fusing_backend(tensors)
    if backend is None:
        distilled = pointwise((x,), d_weight, d_bias, activation="gelu")
        _checks.weight("bsconv_stage", x, dw_weight, "dw_weight", (c, 1, None, None))
        padding = dw_weight.shape[2] // 2
        return distilled, bsconv(x, pw_weight, dw_weight, dw_bias, padding=padding, shortcut=x, activation="gelu")
    _checks.weight("bsconv_stage", x, d_weight, "d_weight", (None, c, 1, 1))
    _checks.weight("bsconv_stage", x, d_bias, "d_bias", (d_weight.shape[0],))
    _checks.weight("bsconv_stage", x, pw_weight, "pw_weight", (c, c, 1, 1))
    _checks.weight("bsconv_stage", x, dw_weight, "dw_weight", (c, 1, 3, 3))
    _checks.weight("bsconv_stage", x, dw_bias, "dw_bias", (c,))
    distilled, refined = _call(*tensors)
    return distilled, refined
