"""alk_stage: the asymmetric large-kernel convolution as a distillation stage.

    distilled = GELU(x W_d^T + d_bias);  refined = GELU(alk_conv(x) + x)
    gd = grad_distilled * GELU'(x W_d^T + d_bias);  du, gx from alk_conv's backward with x as the shortcut
    dx = du W_pw + gd W_d + gx;  dW_pw = du^T x;  dW_d = gd^T x;  dd_bias = sum_p gd

Both 1x1 products come from one pass over x, and so do both of their gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastsr.kernels.activation import form
from fastsr.kernels.alk_conv import before, behind
from fastsr.kernels.alk_conv_backward import before_backward, mix_backward
from fastsr.kernels.maps import scratch_map
from fastsr.kernels.products import Output, matrix, product, weight_gradients
from fastsr.ops._define import empty_map


def alk_stage(x: Tensor, d_weight: Tensor, d_bias: Tensor, *rest: Tensor | float) -> tuple[Tensor, Tensor]:
    *weights, eps = rest
    distilled, refined = empty_map(x, d_weight.shape[0]), empty_map(x, x.shape[1])
    if x.numel() == 0:
        return distilled, refined
    gelu = form(1, x)
    u, packing, toeplitz = before(x, weights)
    outputs = [Output(u, [matrix(weights[0])]), Output(distilled, [matrix(d_weight)], d_bias, gelu)]
    product([x], outputs, [packing])
    behind(u, packing.to, toeplitz, weights, refined, eps, gelu, x)
    return distilled, refined


def alk_stage_backward(
    grad_distilled: Tensor, grad_refined: Tensor, x: Tensor, d_weight: Tensor, d_bias: Tensor, *rest: Tensor | float
) -> tuple[Tensor, ...]:
    *weights, eps = rest
    c = x.shape[1]
    dx = empty_map(x, c)
    gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in (d_weight, d_bias, *weights)]
    if x.numel() == 0:
        return dx, *(g.zero_() for g in gradients)
    gelu, u, gd, gx = form(1, x), scratch_map(x, c), scratch_map(x, d_weight.shape[0]), scratch_map(x, c)
    down, up = matrix(d_weight), matrix(weights[0])
    packings, toeplitz = before_backward(u, weights)
    product([x], [Output(u, [up]), Output(gd, [down], d_bias, gelu, grad=grad_distilled)], packings)
    du = mix_backward(grad_refined, u, packings, toeplitz, gradients[3:], eps, gelu, x, gx)
    du, gd, gx = du[:, :c], gd[:, : d_weight.shape[0]], gx[:, :c]
    product([du, gd], [Output(dx, [up.t(), down.t()], shortcut=gx)])
    weight_gradients([du, gd], [x], [gradients[2], gradients[0]], [None, gradients[1]])
    return dx, *gradients
