"""What TF32 may cost in an ALKConv: a bound of the outputs' errors, and the errors of plain PyTorch.

The norm divides by the deviation of the channels, whose own error it then carries on: a bound derived for the gradients
is larger than they are. So theirs are held to twice those of PyTorch, if all its convolutions were of TF32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from kernel_checks import FLOOR_EPSILONS
from tf32_checks import PAIR, SLOPE, activate, convolve
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

ROUNDING = 2**-11  # of one operand
FLOAT32 = 2**-20  # of other steps, relative
# What products lose of the product of absolute values, by their results; u is rounded once, where it is stored.
SHARES = {"u": PAIR, "stored": ROUNDING, "taps": ROUNDING}


# ---- plain PyTorch


def rounded(x: Tensor) -> Tensor:
    """To 10 bits of mantissa, ties away from zero; float64 to float64."""
    bits = x.float().view(torch.int32)
    return (bits + 0x1000 & ~0x1FFF).view(torch.float32).double()


class RoundedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, padding: Any, groups: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.padding, ctx.groups = padding, groups
        return torch.conv2d(rounded(x), rounded(w), padding=padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, w = ctx.saved_tensors
        g, more = rounded(grad), {"padding": ctx.padding, "groups": ctx.groups}
        return conv2d_input(x.shape, rounded(w), g, **more), conv2d_weight(rounded(x), w.shape, g, **more), None, None


@contextmanager
def convolutions_in_tf32() -> Iterator[None]:
    """PyTorch's, of float64 maps, on any device: exact products of rounded operands."""

    def conv2d(
        x: Tensor, w: Tensor, b: Tensor | None = None, stride: int = 1, padding: Any = 0, *, groups: int = 1
    ) -> Tensor:
        assert stride == 1 and x.dtype == torch.float64
        y = RoundedConvolution.apply(x, w, padding, groups)
        return y if b is None else y + b.view(1, -1, 1, 1)

    before, F.conv2d = F.conv2d, conv2d
    try:
        yield
    finally:
        F.conv2d = before


def assert_twice_rule(found: Sequence[Tensor], exact: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    """As in kernel_checks, of float32 maps."""
    for i, (k, e, p) in enumerate(zip(found, exact, plain, strict=True)):
        allowed = 2 * (p - e).abs().max() + FLOOR_EPSILONS * torch.finfo(torch.float32).eps * e.abs().max()
        error = (k.double() - e).abs().max()
        assert error <= allowed, f"result {i}: {(error / allowed).item():.2f} of what is allowed"


# ---- a bound


class About(NamedTuple):
    """Numbers, and how far off they may be."""

    value: Tensor
    error: Tensor

    @property
    def size(self) -> Tensor:
        return self.value.abs() + self.error

    def plus(self, value: Tensor | float, error: Tensor | float = 0.0) -> About:
        total = self.value + value
        return About(total, self.error + error + FLOAT32 * total.abs())

    def times(self, other: About) -> About:
        value = self.value * other.value
        return About(value, self.size * other.size - value.abs() + FLOAT32 * value.abs())

    def mean(self) -> About:
        """Over the channels."""
        return About(self.value.mean(1, True), self.error.mean(1, True) + FLOAT32 * self.value.abs().mean(1, True))


def exactly(value: Tensor) -> About:
    return About(value, torch.zeros_like(value))


def product(a: About, w: Tensor, share: float) -> About:
    share += 2 * w[0].numel() * 2**-24  # for adding up
    return About(convolve(a.value, w), convolve(a.error, w.abs()) + share * convolve(a.size, w.abs()))


def applied(a: About, activation: str) -> About:
    value = activate(a.value, activation)
    return About(value, SLOPE[activation] * a.error + FLOAT32 * (value.abs() + (activation == "gelu")))


def alk_norm(x: Tensor, weights: Sequence[Tensor], **other_shares: float) -> About:
    """An ALKConv up to the activation behind its norm; all in float64.

    Args:
        other_shares: in place of those of SHARES.
    """
    pw, *rest = weights
    taps, biases, gamma, beta = rest[0:6:2], rest[1:6:2], rest[6], rest[7]
    share = {**SHARES, **other_shares}
    u = product(exactly(x), pw, share["u"])
    u = u.plus(0.0, share["stored"] * u.size)
    branches = [product(u, w, share["taps"]).plus(c.view(1, -1, 1, 1)) for w, c in zip(taps, biases, strict=True)]
    down, across, small = (applied(a, "gelu") for a in branches)
    v = down.plus(*across).plus(*small)
    mean = v.mean()
    centred = v.plus(-mean.value, mean.error + FLOAT32 * v.value.abs())
    variance = centred.times(centred).mean()
    r = (variance.value + 1e-6).rsqrt()
    largest, smallest = ((variance.value + s * variance.error).clamp(min=0).add(1e-6).rsqrt() for s in (-1, 1))
    normed = centred.times(About(r, torch.maximum(largest - r, r - smallest) + FLOAT32 * r))
    return normed.times(exactly(gamma.view(1, -1, 1, 1))).plus(beta.view(1, -1, 1, 1))


def distilled(x: Tensor, w: Tensor, b: Tensor, share: float = PAIR) -> About:
    """GELU(w x + b)."""
    return applied(product(exactly(x), w, share).plus(b.view(1, -1, 1, 1)), "gelu")
