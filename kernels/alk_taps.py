"""The depthwise convolutions of alk_conv by loads of u at shifted addresses: the tap form.

Column and row through a pixel share its own load, and the 3 x 3 shares five of its nine with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.depthwise import row
from fastsr.kernels.packing import Packing, rows

OUTSIDE = tl.constexpr(-(2**30))  # the row of a pixel beyond the image's last: no shift brings it back
UNROLLED = tl.constexpr(17)  # taps


@triton.jit
def branches(u, packed, i_h, i_w, o_c, height, width, T: tl.constexpr, CP: tl.constexpr, BP: tl.constexpr):
    """The three depthwise convolutions at the pixels that the pointers `u` [BP, BC] point to.

    `packed` has rows of CP channels: T vertical taps, T horizontal ones, 9 of the 3 x 3, three biases. A pixel with
    i_h = OUTSIDE gets the biases. Compared as unsigned numbers, what is below 0 is beyond the end as well.
    """
    R: tl.constexpr = T // 2
    M: tl.constexpr = max(R, 1)
    SMALL: tl.constexpr = 2 * T
    m_c = (o_c < CP)[None, :]
    b_v = tl.zeros([BP, o_c.shape[0]], tl.float32) + row(packed, 2 * T + 9, o_c, CP)
    b_h = tl.zeros([BP, o_c.shape[0]], tl.float32) + row(packed, 2 * T + 10, o_c, CP)
    b_s = tl.zeros([BP, o_c.shape[0]], tl.float32) + row(packed, 2 * T + 11, o_c, CP)
    m_here = (i_h >= 0)[:, None] & m_c
    if T <= UNROLLED:
        for t in tl.static_range(2 * M + 1):  # the column through the pixel
            m_y = ((i_h + (t - M)).to(tl.uint32, bitcast=True) < height)[:, None] & m_c
            b_u = tl.load(u + (t - M) * width * CP, mask=m_y, other=0.0).to(tl.float32)
            if t >= M - R and t <= M + R:
                b_v += b_u * row(packed, t - M + R, o_c, CP)
            if t == M:
                b_h += b_u * row(packed, T + R, o_c, CP)
            if t >= M - 1 and t <= M + 1:
                b_s += b_u * row(packed, SMALL + 3 * (t - M + 1) + 1, o_c, CP)
        for t in tl.static_range(2 * M + 1):  # the row through the pixel, without it
            if t != M:
                m_x = m_here & ((i_w + (t - M)).to(tl.uint32, bitcast=True) < width)[:, None]
                b_u = tl.load(u + (t - M) * CP, mask=m_x, other=0.0).to(tl.float32)
                if t >= M - R and t <= M + R:
                    b_h += b_u * row(packed, T + t - M + R, o_c, CP)
                if t >= M - 1 and t <= M + 1:
                    b_s += b_u * row(packed, SMALL + 3 + t - M + 1, o_c, CP)
        for t in tl.static_range(4):  # the corners of the 3 x 3
            y = 2 * (t // 2) - 1
            x = 2 * (t % 2) - 1
            m_y = ((i_h + y).to(tl.uint32, bitcast=True) < height)[:, None] & m_c
            m_x = ((i_w + x).to(tl.uint32, bitcast=True) < width)[:, None]
            b_u = tl.load(u + (y * width + x) * CP, mask=m_y & m_x, other=0.0).to(tl.float32)
            b_s += b_u * row(packed, SMALL + 3 * (y + 1) + x + 1, o_c, CP)
    else:  # so many loads at once would need more registers than there are
        for t in range(T):
            m_y = ((i_h + (t - R)).to(tl.uint32, bitcast=True) < height)[:, None] & m_c
            b_v += tl.load(u + (t - R) * width * CP, mask=m_y, other=0.0).to(tl.float32) * row(packed, t, o_c, CP)
        for t in range(T):
            m_x = m_here & ((i_w + (t - R)).to(tl.uint32, bitcast=True) < width)[:, None]
            b_h += tl.load(u + (t - R) * CP, mask=m_x, other=0.0).to(tl.float32) * row(packed, T + t, o_c, CP)
        for t in range(9):
            m_y = ((i_h + (t // 3 - 1)).to(tl.uint32, bitcast=True) < height)[:, None] & m_c
            m_x = ((i_w + (t % 3 - 1)).to(tl.uint32, bitcast=True) < width)[:, None]
            p_u = u + ((t // 3 - 1) * width + t % 3 - 1) * CP
            b_u = tl.load(p_u, mask=m_y & m_x, other=0.0).to(tl.float32)
            b_s += b_u * row(packed, SMALL + t, o_c, CP)
    return b_v, b_h, b_s


def weight_rows(u: Tensor, weights: Sequence[Tensor]) -> Packing:
    """Depthwise taps, biases and the norm's parameters as rows; `weights` as in ALKConvWeights."""
    _, lora1, lora1_bias, lora2, lora2_bias, small, small_bias, norm_weight, norm_bias = weights
    vectors = (lora1_bias, lora2_bias, small_bias, norm_weight, norm_bias)
    return rows(u, [lora1, lora2, small, *(v.unsqueeze(1) for v in vectors)])
