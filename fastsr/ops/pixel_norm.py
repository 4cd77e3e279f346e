"""pixel_norm: layer normalisation over the channels of each pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import reference
from fastsr._dispatch import Extents, limit, select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._define import define_choice, register_cpu, register_cuda, register_triton

MOST = {"cuda": {"channels": 256}}  # csrc/cuda/pixel_norm.h


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    _checks.feature_map("pixel_norm", x)
    for name, value in (("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor):
            raise InputError(f"pixel_norm: {name} is a {type(value).__name__}; pass a tensor [{x.shape[1]}]")
        if value.dim() != 1 or value.shape[0] != x.shape[1]:
            raise InputError(f"pixel_norm: {name} has shape {tuple(value.shape)}; pass [{x.shape[1]}], one per channel")
        if value.device != x.device:
            raise InputError(f"pixel_norm: {name} is on {value.device} and x on {x.device}; move one of them")
        # Statistics and affine are float32 inside, so float32 parameters fit a half-precision x (autocast).
        if value.dtype != x.dtype and value.dtype != torch.float32:
            have, want = (str(d).removeprefix("torch.") for d in (value.dtype, x.dtype))
            raise InputError(f"pixel_norm: {name} is {have} and x {want}; pass {want} or float32")
    if weight.dtype != bias.dtype:
        raise InputError(f"pixel_norm: weight is {weight.dtype} and bias {bias.dtype}; pass one dtype for both")


def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    x, weight, _, eps = inputs
    ctx.save_for_backward(x, weight)
    ctx.eps = eps


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    x, weight = ctx.saved_tensors
    return (*ctx.call_backward(grad, x, weight, ctx.eps), None)


SCHEMA = "(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor"
BACKWARD_SCHEMA = "(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)"

_call = define_choice(
    "pixel_norm",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
register_cpu("pixel_norm", _checks.DTYPES)
register_triton("pixel_norm")
register_cuda("pixel_norm", SCHEMA, BACKWARD_SCHEMA)


def _extents(x: Tensor, **_: Any) -> Extents:
    return {"channels": x.shape[1]}


limit("pixel_norm", _extents, MOST)


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer normalisation over the channels of each pixel (ALKDNet, section 3.3; ConvNeXt's LayerNorm2d).

    Args:
        x: [N, C, H, W], any strides, float16, bfloat16, float32 or float64.
        weight, bias: [C], in the dtype of `x` or in float32.
        eps: added to the (population) variance.

    Returns:
        [N, C, H, W] in the dtype and memory layout of `x`. Statistics are taken in float32 (float64 for float64).
        Under autocast the operator keeps the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device.
        BackendError: a backend is forced that cannot run this.
    """
    _check(x, weight, bias)
    backend = select("pixel_norm", x, _extents(x), (weight, bias))
    if backend == "reference":
        return reference.pixel_norm(x, weight, bias, eps)
    return _call[backend](x, weight, bias, eps)
