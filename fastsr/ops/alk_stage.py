"""alk_stage: the asymmetric large-kernel convolution as a distillation stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import reference
from fastsr._dispatch import limit, records, select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._alk_kept import define_kept
from fastsr.ops._define import define_choice, empty_map, register_cpu, register_cuda, register_triton, takes_packed
from fastsr.ops.alk_conv import KERNEL_DTYPES, MOST, WEIGHTS_SCHEMA, check_weights, extents
from fastsr.reference import ALKConvWeights


def _fake(x: Tensor, d_weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_map(x, d_weight.shape[0]), empty_map(x, x.shape[1])


def _fake_backward(grad_distilled: Tensor, grad_refined: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weights = rest[: 2 + len(ALKConvWeights._fields)]
    return (empty_map(x, x.shape[1]), *(torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_distilled: Tensor, grad_refined: Tensor) -> tuple[Tensor | None, ...]:
    gradients = ctx.call_backward(grad_distilled, grad_refined, *ctx.saved_tensors, ctx.eps)
    return (*gradients, None)


SCHEMA = f"(Tensor x, Tensor d_weight, Tensor d_bias, {WEIGHTS_SCHEMA}, float eps) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = (
    f"(Tensor grad_distilled, Tensor grad_refined, Tensor x, Tensor d_weight, Tensor d_bias, {WEIGHTS_SCHEMA}, "
    f"float eps) -> ({', '.join(['Tensor'] * 12)})"
)

_call = define_choice(
    "alk_stage",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
_call_kept = define_kept("alk_stage", SCHEMA, BACKWARD_SCHEMA, fake=_fake, fake_backward=_fake_backward)
register_cpu("alk_stage", KERNEL_DTYPES)
register_triton("alk_stage", KERNEL_DTYPES)
register_cuda("alk_stage", SCHEMA, BACKWARD_SCHEMA, KERNEL_DTYPES, tf32=True)
limit("alk_stage", extents, MOST)


def check_stage_weights(op: str, x: Tensor, weights: ALKConvWeights, d_weight: Tensor, d_bias: Tensor) -> None:
    """The weights must fit one another and `x`."""
    check_weights(op, x, weights)
    if weights.pw_weight.shape[0] != x.shape[1]:
        raise InputError(
            f"{op}: pw_weight gives {weights.pw_weight.shape[0]} channels; pass {x.shape[1]}, the channels of "
            "x, which is added to them"
        )
    _checks.weight(op, x, d_weight, "d_weight", (None, x.shape[1], 1, 1))
    _checks.weight(op, x, d_bias, "d_bias", (d_weight.shape[0],))


def alk_stage(
    x: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
    weights: ALKConvWeights,
    *,
    eps: float = 1e-6,
    packed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One distillation stage of an ALKDB (ALKDNet, section 3.2, equation 7).

    Args:
        x: [N, C, H, W], any strides, float16, bfloat16, float32 or float64.
        d_weight, d_bias: the distilling 1x1, [D, C, 1, 1] and [D].
        weights: ALKConvWeights for C channels in and out.
        eps: of the pixel norm.
        packed: what `pack_alk_conv` made of all weights; used where its kernel runs without autograd.

    Returns:
        The distilled GELU(d(x)) [N, D, H, W] and the refined GELU(alk_conv(x) + x) [N, C, H, W], in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("alk_stage", x)
    if packed is not None and takes_packed("alk_stage", packed, x, d_weight, d_bias, *weights):
        distilled, taps = d_weight.shape[0], weights.lora1_weight.shape[2]
        return torch.ops.fastsr.alk_stage_packed(x, packed, distilled, taps, eps)
    check_stage_weights("alk_stage", x, weights, d_weight, d_bias)
    tensors = (d_weight, d_bias, *weights)
    backend = select("alk_stage", x, extents(x, *weights[:2]), tensors)
    if backend == "reference":
        return reference.alk_stage(x, d_weight, d_bias, weights, eps=eps)
    if backend == "cuda" and records(x, *tensors):
        distilled, refined, _ = _call_kept(x, *tensors, eps)
        return distilled, refined
    return _call[backend](x, *tensors, eps)
