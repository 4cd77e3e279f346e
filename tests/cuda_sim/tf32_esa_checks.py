"""What TF32 may cost in an ESA: a bound of the output's errors, carried through its steps in float64.

The gradient of a maximum goes to one pixel, and it is the values in TF32 that say to which: errors of gradients are
those beside float64 that sends them to the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tf32_alk_checks import FLOAT32, PAIR, About, applied, exactly
from tf32_convolutions import rounded
from torch import Tensor
from torch.nn import functional as F

from fastsr import reference
from fastsr.reference import ESA_POOL, ESA_POOL_STRIDE

POOL = (ESA_POOL, ESA_POOL_STRIDE)


def filters_of(weights: Any) -> list[tuple[Tensor, Tensor]]:
    """The 3x3 convolutions as dense ones with their biases: conv2, then those of the small map."""
    middle = list(weights[2:-4])
    step = 2 if len(weights) == 10 else 3
    parts = [middle[i : i + step] for i in range(0, len(middle), step)]
    return [(p[0] if step == 2 else p[0] * p[1], p[-1]) for p in parts]


def convolved(a: About, w: Tensor, b: Tensor, share: float, **where: int) -> About:
    share += 2 * w[0].numel() * 2**-24  # for adding up
    value, error = F.conv2d(a.value, w, **where), F.conv2d(a.error, w.abs(), **where)
    return About(value, error + share * F.conv2d(a.size, w.abs(), **where)).plus(b.view(1, -1, 1, 1))


def gated(x: Tensor, weights: Sequence[Tensor], padding: int, share: float = PAIR) -> About:
    """The operator, all in float64.

    Args:
        share: what products lose of the product of absolute values.
    """
    (w2, b2), *small = filters_of(weights)
    w1, b1, *_, wf, bf, w4, b4 = weights
    c1 = convolved(exactly(x), w1, b1, share)
    low = convolved(c1, w2, b2, share, stride=2, padding=padding)
    out = About(F.max_pool2d(low.value, *POOL), F.max_pool2d(low.error, *POOL))
    for i, (w, b) in enumerate(small):
        out = convolved(applied(out, "gelu" if i else "none"), w, b, share, padding=1)
    large = [F.interpolate(t, x.shape[2:], mode="bilinear", align_corners=False) for t in out]
    gate = convolved(convolved(c1, wf, bf, share).plus(*large), w4, b4, share)
    return exactly(x).times(About(gate.value.sigmoid(), 0.25 * gate.error + FLOAT32))


def maxima(x: Tensor, weights: Sequence[Tensor], padding: int) -> Tensor:
    """Where the maxima of float32 maps multiplied in TF32 are, as indices of pixels of low."""
    w2, b2 = filters_of(weights)[0]
    c1 = F.conv2d(rounded(x), rounded(weights[0]), weights[1].double()).float()
    low = F.conv2d(rounded(c1), rounded(w2), b2.double(), stride=2, padding=padding)
    return F.max_pool2d(low, *POOL, return_indices=True)[1]


@contextmanager
def pooled_at(places: Tensor) -> Iterator[None]:
    """The reference takes the values there instead of the maxima."""
    before = reference._pooled
    reference._pooled = lambda low: low.flatten(2).gather(2, places.flatten(2)).view(places.shape)
    try:
        yield
    finally:
        reference._pooled = before
