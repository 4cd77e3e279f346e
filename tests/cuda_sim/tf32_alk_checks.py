"""What TF32 may cost in an ALKConv: a bound of the outputs' errors, carried through its steps in float64.

The norm divides by the deviation of the channels, whose own error it then carries on: a bound derived for the gradients
is larger than they are. So theirs are held to twice those of PyTorch (tests/tf32_convolutions.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tf32_checks import PAIR, SLOPE, activate, convolve
from torch import Tensor

ROUNDING = 2**-11  # of one operand
FLOAT32 = 2**-20  # of other steps, relative
# What products lose of the product of absolute values, by their results; u is rounded once, where it is stored.
SHARES = {"u": PAIR, "stored": ROUNDING, "taps": ROUNDING}


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
