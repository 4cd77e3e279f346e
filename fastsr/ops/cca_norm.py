"""cca_norm: contrast-aware channel attention with pixel norm and residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import reference
from fastsr._dispatch import Extents, limit, select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._define import (
    define_choice,
    define_over,
    empty_map,
    may_overwrite,
    register_cpu,
    register_cuda,
    register_triton,
)

_TENSORS = 8  # x, shortcut, four of the attention, two of the norm
MOST = {"cuda": {"channels": 256, "channels inside": 256}}  # csrc/cuda/cca_norm.h


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_map(x, x.shape[1]), x.new_empty((x.shape[0], 2, x.shape[1]), dtype=torch.float64)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    du0_weight: Tensor,
    du0_bias: Tensor,
    du2_weight: Tensor,
    du2_bias: Tensor,
    norm_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    norm = du2_bias if norm_weight is None else norm_weight
    parameters = (du0_weight, du0_bias, du2_weight, du2_bias, norm, norm)
    return (empty_map(x, x.shape[1]), *(p.new_empty(p.shape) for p in parameters))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, *parameters = inputs[:_TENSORS]
    ctx.save_for_backward(x, output[1], *parameters[:5])
    ctx.eps = inputs[_TENSORS]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * (_TENSORS + 1)
    saved = ctx.saved_tensors  # once: under checkpointing a second look is an error
    gradients = ctx.call_backward(grad, *saved, ctx.eps)
    norm: tuple[Tensor | None, ...] = gradients[5:] if saved[-1] is not None else (None, None)
    return (gradients[0], grad, *gradients[1:5], *norm, None)


SCHEMA = (
    "(Tensor x, Tensor shortcut, Tensor du0_weight, Tensor du0_bias, Tensor du2_weight, Tensor du2_bias, "
    "Tensor? norm_weight, Tensor? norm_bias, float eps) -> (Tensor, Tensor)"
)
BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor x, Tensor statistics, Tensor du0_weight, Tensor du0_bias, Tensor du2_weight, "
    "Tensor du2_bias, Tensor? norm_weight, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_call = define_choice(
    "cca_norm",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
register_cpu("cca_norm", (torch.float32, torch.float16, torch.bfloat16))
define_over(
    "cca_norm",
    "(Tensor(a!) x, Tensor shortcut, Tensor du0_weight, Tensor du0_bias, Tensor du2_weight, Tensor du2_bias, "
    "Tensor? norm_weight, Tensor? norm_bias, float eps) -> ()",
)
register_triton("cca_norm")
register_cuda("cca_norm", SCHEMA, BACKWARD_SCHEMA)


def _extents(x: Tensor, du0_weight: Tensor, **_: Any) -> Extents:
    return {"channels": x.shape[1], "channels inside": du0_weight.shape[0]}


limit("cca_norm", _extents, MOST)


def check_cca_weights(
    op: str,
    x: Tensor,
    shortcut: Tensor,
    du0_weight: Tensor,
    du0_bias: Tensor,
    du2_weight: Tensor,
    du2_bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
) -> None:
    """The shortcut and the parameters must fit `x` and one another."""
    _checks.same_shape(op, x, shortcut, "shortcut")
    c = x.shape[1]
    _checks.weight(op, x, du0_weight, "du0_weight", (None, c, 1, 1))
    r = du0_weight.shape[0]
    _checks.weight(op, x, du0_bias, "du0_bias", (r,))
    _checks.weight(op, x, du2_weight, "du2_weight", (c, r, 1, 1))
    _checks.weight(op, x, du2_bias, "du2_bias", (c,))
    if (norm_weight is None) != (norm_bias is None):
        raise InputError(f"{op}: only one of norm_weight and norm_bias is None; pass both or neither")
    if norm_weight is not None and norm_bias is not None:
        _checks.weight(op, x, norm_weight, "norm_weight", (c,))
        _checks.weight(op, x, norm_bias, "norm_bias", (c,))


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
    overwrite: bool = False,
) -> Tensor:
    """Contrast-aware channel attention, pixel norm and residual (ALKDNet, section 3.2, equations 9 and 10).

    The attention is sigmoid(du2(ReLU(du0(standard deviation + mean)))) over the whole image per channel, with
    statistics in float32 at least and gradient 0 for the standard deviation of a constant map.

    Args:
        x: [N, C, H, W].
        shortcut: [N, C, H, W], the block's input.
        du0_weight, du0_bias: [R, C, 1, 1] and [R].
        du2_weight, du2_bias: [C, R, 1, 1] and [C].
        norm_weight, norm_bias: [C], or both None for a block without pixel norm (BSRN).
        eps: of the pixel norm.
        overwrite: `x` is not needed any more, and may be returned with the result in it.

    Returns:
        [N, C, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("cca_norm", x)
    parameters = (du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias)
    check_cca_weights("cca_norm", x, shortcut, *parameters)
    mixed = shortcut.dtype != x.dtype  # under autocast, which leaves it to the addition to unite them
    others = (shortcut, *parameters)
    backend = "reference" if mixed else select("cca_norm", x, _extents(x, du0_weight), others)
    if backend == "reference":
        return reference.cca_norm(x, shortcut, *parameters, eps=eps)
    if not (overwrite and may_overwrite("cca_norm", x, shortcut, *parameters)):
        return _call[backend](x, shortcut, *parameters, eps)[0]
    torch.ops.fastsr.cca_norm_(x, shortcut, *parameters, eps)
    return x
