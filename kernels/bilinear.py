"""Bilinear enlargement along one axis, as PyTorch's align_corners=False does it.

at = max(0, (to + 1/2) ratio - 1/2);  value = (1 - frac(at)) x[floor(at)] + frac(at) x[floor(at) + 1]
`ratio` is the extent of a step on the small axis of `size` elements, its last element stands for all beyond it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bilinear_tap(o_to, i, ratio, size):
    """The first (i = 0) or second tap of positions `o_to` of the enlarged axis, and its share."""
    b_at = tl.maximum((o_to + 0.5) * ratio - 0.5, 0.0)
    o_from = tl.minimum(b_at.to(tl.int32), size - 1)
    b_1 = tl.minimum(tl.maximum(b_at - o_from, 0.0), 1.0)
    return tl.minimum(o_from + i, size - 1), i * b_1 + (1 - i) * (1.0 - b_1)


@triton.jit
def share(o_to, o_from, ratio, size):
    """How much of position `o_from` of the small axis is in `o_to` of the enlarged one: the adjoint's weights."""
    o_0, b_0 = bilinear_tap(o_to, 0, ratio, size)
    o_1, b_1 = bilinear_tap(o_to, 1, ratio, size)
    return tl.where(o_0 == o_from, b_0, 0.0) + tl.where(o_1 == o_from, b_1, 0.0)
