"""What TF32 may cost, derived: rounding to 11 bits of significand moves an operand by at most 2^-11 of itself.

So a product of two is off by (2 u + u^2) |x w| at most, a convolution by that much of the convolution of absolute
values, beside what float32 loses in adding up. An activation carries the error of its input on by its slope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PAIR = 2 * 2**-11 + 2**-22
SLOPE = {"none": 1.0, "gelu": 1.13, "leaky_relu": 1.0}  # the largest of each activation
BEND = {"none": 0.0, "gelu": 0.8, "leaky_relu": 0.0}  # of its derivative, away from the kink

Convolve = Callable[[Tensor, Tensor], Tensor]  # of a map and a filter


def gradients_of(convolve: Convolve, x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The results for x and w of `grad`."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    return torch.autograd.grad(convolve(x, w), (x, w), grad)


def bounds(convolve: Convolve, x: Tensor, w: Tensor, pre: Tensor, grad: Tensor, activation: str) -> list[Tensor]:
    """Of the errors of y, dx, dw and dbias of act(convolve(x, w) + ...), element by element, all in float64.

    Args:
        pre: what the activation is applied to.
        grad: that of the output.
    """
    terms = max(w[0].numel(), grad.numel() // grad.shape[1])
    share = PAIR + 2 * terms * 2**-24
    of_pre = share * convolve(x.abs(), w.abs()) + 2**-22 * pre.abs()
    slopes = torch.autograd.functional.vjp(lambda z: activate(z, activation), pre, grad)[1]
    of_slopes = grad.abs() * (BEND[activation] * of_pre + 2**-20)
    exact = gradients_of(convolve, x.abs(), w.abs(), slopes.abs())
    carried = gradients_of(convolve, x.abs(), w.abs(), of_slopes)
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
