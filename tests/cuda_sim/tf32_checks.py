"""What TF32 may cost, derived: rounding to 11 bits of significand moves an operand by at most 2^-11 of itself.

So a product of two is off by (2 u + u^2) |x w| at most, a convolution by that much of the convolution of absolute
values, beside what float32 loses in adding up. An activation carries the error of its input on by its slope.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

PAIR = 2 * 2**-11 + 2**-22
SLOPE = {"none": 1.0, "gelu": 1.13, "leaky_relu": 1.0}  # the largest of each activation
BEND = {"none": 0.0, "gelu": 0.8, "leaky_relu": 0.0}  # of its derivative, away from the kink


def convolve(x: Tensor, *weights: Tensor) -> Tensor:
    """One convolution after the other, of as many pixels out as in; depthwise where a filter has one channel."""
    for w in weights:
        x = conv2d(x, w, padding=(w.shape[2] // 2, w.shape[3] // 2), groups=x.shape[1] // w.shape[1])
    return x


def gradients_of(operands: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The results for the map and the weights of `grad`."""
    leaves = [t.detach().requires_grad_() for t in operands]
    return torch.autograd.grad(convolve(*leaves), leaves, grad)


def bounds(operands: Sequence[Tensor], pre: Tensor, grad: Tensor, activation: str) -> list[Tensor]:
    """Of the errors of y, dx, each dw and dbias of act(convolve(x, w, ...) + ...), element by element, all in float64.

    Every way to a result leads through one product in TF32.

    Args:
        operands: x and the weights.
        pre: what the activation is applied to.
        grad: that of the output.
    """
    sizes = [t.abs() for t in operands]
    terms = max(sum(w[0].numel() for w in operands[1:]), grad.numel() // grad.shape[1])
    share = PAIR + 2 * terms * 2**-24
    of_pre = share * convolve(*sizes) + 2**-22 * pre.abs()
    slopes = torch.autograd.functional.vjp(lambda z: activate(z, activation), pre, grad)[1]
    of_slopes = grad.abs() * (BEND[activation] * of_pre + 2**-20)
    exact = gradients_of(sizes, slopes.abs())
    carried = gradients_of(sizes, of_slopes)
    of_bias = (of_slopes + 2 * terms * 2**-24 * slopes.abs()).sum((0, 2, 3))
    of_gradients = [share * e + (1 + share) * c for e, c in zip(exact, carried, strict=True)]
    return [SLOPE[activation] * of_pre + 2**-20 * (1 + pre.abs()), *of_gradients, of_bias]


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "gelu":
        return torch.nn.functional.gelu(x)
    return torch.nn.functional.leaky_relu(x, 0.05) if activation == "leaky_relu" else x


def just_below(shape: Sequence[int], seed: int) -> Tensor:
    """Random numbers a little below such of TF32: rounded they hardly change, cut off by a whole unit."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).half().float() * (1 - 2**-20)
