"""pixel_norm: layer normalisation over the channels of each pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import _native, reference
from fastsr._dispatch import register, select
from fastsr._native import LIB
from fastsr.errors import InputError
from fastsr.ops import _checks

_TAGS = (torch.Tag.pt2_compliant_tag,)

LIB.define("pixel_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor", tags=_TAGS)
LIB.define(
    "pixel_norm_backward(Tensor grad, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    _checks.feature_map("pixel_norm", x)
    for name, value in (("weight", weight), ("bias", bias)):
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


# ---- fakes and reference kernels, which make the operators complete without a binary


def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _kernel(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x).copy_(reference.pixel_norm(x, weight, bias, eps))


def _kernel_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    xf, gf = x.to(dtype), grad.to(dtype)
    centred = xf - xf.mean(1, keepdim=True)
    rstd = (centred.square().mean(1, keepdim=True) + eps).rsqrt()
    normed = centred * rstd
    gw = gf * weight.to(dtype).view(1, -1, 1, 1)
    dx = rstd * (gw - gw.mean(1, keepdim=True) - normed * (gw * normed).mean(1, keepdim=True))
    d_weight, d_bias = (gf * normed).sum((0, 2, 3)), gf.sum((0, 2, 3))
    return torch.empty_like(x).copy_(dx), d_weight.to(weight.dtype), d_bias.to(weight.dtype)


torch.library.register_fake("fastsr::pixel_norm", _fake, lib=LIB)
torch.library.register_fake("fastsr::pixel_norm_backward", _fake_backward, lib=LIB)
for _key in ("CUDA",) if _native.CPU.loaded else ("CPU", "CUDA"):
    LIB.impl("pixel_norm", _kernel, _key)
    LIB.impl("pixel_norm_backward", _kernel_backward, _key)


# ---- backends


def _can_run_cpu(x: Tensor) -> str | None:
    if not _native.CPU.loaded:
        return _native.CPU.reason
    if x.device.type != "cpu":
        return f"x is on {x.device.type}, this kernel runs on cpu"
    return None


register("pixel_norm", "cpu", _can_run_cpu)


# ---- backward


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    x, weight, _, eps = inputs
    ctx.save_for_backward(x, weight)
    ctx.eps = eps


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    x, weight = ctx.saved_tensors
    return (*torch.ops.fastsr.pixel_norm_backward(grad, x, weight, ctx.eps), None)


def _double_backward(ctx: Any, *grads: Tensor) -> None:
    raise InputError(
        "pixel_norm: the fused backward cannot be differentiated again; for second derivatives run under "
        "fastsr.backend('reference')"
    )


torch.library.register_autograd("fastsr::pixel_norm", _backward, setup_context=_setup_context, lib=LIB)
torch.library.register_autograd("fastsr::pixel_norm_backward", _double_backward, lib=LIB)


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
    if select("pixel_norm", x) == "reference":
        return reference.pixel_norm(x, weight, bias, eps)
    return torch.ops.fastsr.pixel_norm(x, weight, bias, eps)
