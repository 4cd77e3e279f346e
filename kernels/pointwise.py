"""pointwise: a 1x1 convolution of several maps as if they were concatenated, with its activation.

    pre = sum_i x_i W_i^T + bias + shortcut;  y = act(pre)
    g = grad * act'(pre) = d_shortcut;  dx_i = g W_i;  dW = g^T [x_0, x_1, ...];  dbias = sum_p g

All of it is products.py; without an activation g is `grad` itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastsr.kernels.activation import form
from fastsr.kernels.products import Output, matrix, product, weight_gradients
from fastsr.ops._define import empty_map


def columns(weight: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The [K, C_i] matrices that belong to the inputs."""
    return list(matrix(weight).split([x.shape[1] for x in inputs], 1))


def pointwise(inputs: list[Tensor], weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int) -> Tensor:
    first = inputs[0]
    y = empty_map(first, weight.shape[0])
    if y.numel() > 0:
        product(inputs, [Output(y, columns(weight, inputs), bias, form(activation, first), shortcut=shortcut)])
    return y


def pointwise_backward(
    grad: Tensor, inputs: list[Tensor], weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    d_inputs = [empty_map(x, x.shape[1]) for x in inputs]
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    d_bias = torch.empty_like(bias, memory_format=torch.contiguous_format)
    has_own_gradient = shortcut is not None and activation != 0
    d_shortcut = empty_map(inputs[0], weight.shape[0]) if has_own_gradient else grad.new_empty(0)
    if grad.numel() == 0:
        return d_inputs, d_weight.zero_(), d_bias.zero_(), d_shortcut
    matrices = columns(weight, inputs)
    if activation != 0:
        g = d_shortcut if has_own_gradient else empty_map(inputs[0], weight.shape[0])
        product(inputs, [Output(g, matrices, bias, form(activation, grad), shortcut=shortcut, grad=grad)])
        grad = g
    product([grad], [Output(d, [m.t()]) for d, m in zip(d_inputs, matrices, strict=True)])
    weight_gradients([grad], inputs, [d_weight], [d_bias])
    return d_inputs, d_weight, d_bias, d_shortcut
