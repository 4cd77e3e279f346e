"""upsample: the last 3x3 convolution, pixel shuffle and the residual from the low-resolution image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsr import reference
from fastsr._dispatch import select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._define import define_choice, empty_map, register_cpu, register_cuda, register_triton
from fastsr.reference import Residual


def _fake(x: Tensor, weight: Tensor, bias: Tensor, lr: Tensor | None, scale: int, residual: int) -> Tensor:
    return empty_map(x, weight.shape[0] // (scale * scale), x.shape[2] * scale, x.shape[3] * scale)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor | None,
    scale: int,
    residual: int,
    lr_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted = lr is not None and lr_gradient and residual != 0
    d_lr = empty_map(lr, lr.shape[1]) if wanted and lr is not None else x.new_empty((0,))
    return empty_map(x, x.shape[1]), weight.new_empty(weight.shape), bias.new_empty(bias.shape), d_lr


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, lr, ctx.scale, ctx.residual = inputs
    ctx.save_for_backward(x, weight, bias, lr)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[3] and ctx.residual != 0
    *gradients, d_lr = ctx.call_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.residual, wanted)
    return (*gradients, d_lr if wanted else None, None, None)


SCHEMA = "(Tensor x, Tensor weight, Tensor bias, Tensor? lr, int scale, int residual) -> Tensor"
BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? lr, int scale, int residual, bool lr_gradient) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)

_call = define_choice(
    "upsample",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
register_cpu("upsample", (torch.float32, torch.float16, torch.bfloat16))
register_triton("upsample")
register_cuda("upsample", SCHEMA, BACKWARD_SCHEMA, tf32=True)


def upsample(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor | None,
    *,
    scale: int,
    residual: Residual = "none",
) -> Tensor:
    """pixel_shuffle(conv3x3(x)) plus a residual from the low-resolution image.

    Args:
        x: features [N, C, H, W].
        weight, bias: [K * scale * scale, C, 3, 3] and [K * scale * scale], for K output channels.
        lr: the network's input [N, K, H, W]; needed unless `residual` is "none".
        scale: the enlargement, at least 1.
        residual: "anchor" repeats each LR pixel over its block (ALKDNet, section 3.1, equation 5), "bilinear" adds
            the bilinearly enlarged LR image (MLRN, section 3.2, equation 10), "none" adds nothing.

    Returns:
        [N, K, H * scale, W * scale] in the dtype of `x`. Under autocast `lr` may have another one, like an image of
        float32 beside features of bfloat16: it is added to the rounded product, and the result has the wider of both.

    Raises:
        InputError: a wrong rank, shape, dtype, device, scale or residual.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("upsample", x)
    _checks.weight("upsample", x, weight, "weight", (None, x.shape[1], 3, 3))
    _checks.weight("upsample", x, bias, "bias", (weight.shape[0],))
    _checks.choice("upsample", residual, "residual", _checks.RESIDUALS)
    if scale < 1 or weight.shape[0] % (scale * scale):
        raise InputError(
            f"upsample: scale is {scale} and weight gives {weight.shape[0]} channels; pass a multiple of scale squared"
        )
    if residual != "none":
        if lr is None:
            raise InputError(f"upsample: residual is {residual!r} but lr is None; pass the low-resolution image")
        want = (x.shape[0], weight.shape[0] // (scale * scale), x.shape[2], x.shape[3])
        _checks.feature_map("upsample", lr, "lr")
        if tuple(lr.shape) != want:
            raise InputError(f"upsample: lr has shape {tuple(lr.shape)}; pass {want}")
        _checks.placed_like("upsample", x, lr, "lr")
    backend = select("upsample", x, None, (weight, bias, lr))
    if backend == "reference":
        return reference.upsample(x, weight, bias, lr, scale=scale, residual=residual)
    image = None if residual == "none" else lr
    if image is not None and image.dtype != x.dtype:
        return _add(_call[backend](x, weight, bias, None, scale, 0), image, scale, residual)
    return _call[backend](x, weight, bias, image, scale, _checks.RESIDUALS.index(residual))


def _add(y: Tensor, lr: Tensor, scale: int, residual: Residual) -> Tensor:
    """y plus an image of another dtype, which the kernels would have to round: in PyTorch, as the reference does it."""
    if residual == "bilinear":
        return y + F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
    n, k, h, w = lr.shape
    blocks = y.reshape(n, k, h, scale, w, scale) + lr[:, :, :, None, :, None]
    return blocks.reshape(y.shape)
