"""bsconv: blueprint separable convolution, a 1x1 and a depthwise 3x3, with shortcut and activation.

    u = x W_pw^T;  pre = dw(u) + bias + shortcut;  y = act(pre)
    g = grad * act'(pre) = dshortcut;  du = dw^T(g);  ddw_t = sum_p g_p u_(p + t);  dbias = sum_p g
    dx = du W_pw;  dW_pw = du^T x

Two kernels forward: Triton has no shifts within shared memory, so u passes through the second-level cache. The backward
saves the inputs and recomputes u and pre.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastsr.kernels.activation import form
from fastsr.kernels.depthwise import depthwise, depthwise_weight_gradients
from fastsr.kernels.maps import scratch_map
from fastsr.kernels.packing import rows
from fastsr.kernels.products import Output, matrix, product, weight_gradients
from fastsr.ops._define import empty_map

KERNEL = (3, 3)


def bsconv(
    x: Tensor, pw_weight: Tensor, dw_weight: Tensor, dw_bias: Tensor, shortcut: Tensor | None, activation: int
) -> Tensor:
    c = pw_weight.shape[0]
    y = empty_map(x, c)
    if y.numel() == 0:
        return y
    u = scratch_map(x, c)
    packing = rows(u, [dw_weight, dw_bias.unsqueeze(1)])
    product([x], [Output(u, [matrix(pw_weight)])], [packing])
    depthwise(u, packing.to, y, c, KERNEL, bias=True, form=form(activation, x), shortcut=shortcut)
    return y


def bsconv_backward(
    grad: Tensor,
    x: Tensor,
    pw_weight: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    shortcut: Tensor | None,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    c = pw_weight.shape[0]
    dx = empty_map(x, x.shape[1])
    d_pw, d_dw, d_bias = (
        torch.empty_like(p, memory_format=torch.contiguous_format) for p in (pw_weight, dw_weight, dw_bias)
    )
    own = shortcut is not None and activation != 0
    d_shortcut = empty_map(x, c) if own else x.new_empty(0)
    if grad.numel() == 0:
        return dx, d_pw.zero_(), d_dw.zero_(), d_bias.zero_(), d_shortcut
    u = scratch_map(x, c)
    packing = rows(u, [dw_weight, dw_bias.unsqueeze(1)])
    product([x], [Output(u, [matrix(pw_weight)])], [packing])
    g = grad
    if activation != 0:
        g = d_shortcut if own else scratch_map(x, c)
        depthwise(u, packing.to, g, c, KERNEL, bias=True, form=form(activation, x), shortcut=shortcut, grad=grad)
    du = scratch_map(x, c)
    depthwise(g, packing.to, du, c, KERNEL, flip=True)
    depthwise_weight_gradients([g], u, [d_dw], [d_bias])
    product([du[:, :c]], [Output(dx, [matrix(pw_weight).t()])])
    weight_gradients([du[:, :c]], [x], [d_pw], [None])
    return dx, d_pw, d_dw, d_bias, d_shortcut
