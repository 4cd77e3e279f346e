"""alk_conv: the asymmetric large-kernel convolution; alk_stage.py builds on the same kernels.

    u = x W_pw^T
    v, h, s = depthwise k x 1, 1 x k and 3 x 3 of u, each with bias
    xhat, r = normalise(GELU(v) + GELU(h) + GELU(s));  pre = xhat * norm_weight + norm_bias + shortcut;  y = act(pre)

The 1x1 is a product (products.py); `mix_kernel` does everything behind it (alk_taps.py). In half precision
alk_toeplitz.py takes its place where the tables say so. The backward is in alk_conv_backward.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels import alk_toeplitz
from fastsr.kernels.activation import activate, form
from fastsr.kernels.alk_conv_backward import alk_conv_backward as alk_conv_backward
from fastsr.kernels.alk_taps import OUTSIDE, branches, weight_rows
from fastsr.kernels.alk_toeplitz import toeplitz_tile
from fastsr.kernels.config import Tile, tile
from fastsr.kernels.depthwise import row
from fastsr.kernels.launch import block, cdiv, launch, strides
from fastsr.kernels.maps import map_offsets, scratch_map, tile_of_image
from fastsr.kernels.packing import Packing, bands
from fastsr.kernels.pixel_norm import normalise
from fastsr.kernels.products import Output, matrix, product
from fastsr.ops._define import empty_map


@triton.jit
def mix_kernel(
    u,
    packed,
    shortcut,
    y,
    pixels,
    height,
    width,
    u_strides,
    shortcut_strides,
    y_strides,
    eps,
    T: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    GELU: tl.constexpr,
    FORM: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    i_n, o_p, m_p = tile_of_image(tl.program_id(0), pixels, BP)
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    i_h = tl.where(m_p, o_p // width, OUTSIDE)
    p_u = u + map_offsets(i_n, o_p, o_c, width, u_strides)
    b_v, b_h, b_s = branches(p_u, packed, i_h, o_p % width, o_c, height, width, T, CP, BP)
    b_a = tl.where(m_c, activate(b_v, GELU) + activate(b_h, GELU) + activate(b_s, GELU), 0.0)
    b_xhat, _ = normalise(b_a, m_c, eps, C)
    b_y = b_xhat * row(packed, 2 * T + 12, o_c, CP) + row(packed, 2 * T + 13, o_c, CP)
    m_y = m_p[:, None] & m_c
    if shortcut is not None:
        p_s = shortcut + map_offsets(i_n, o_p, o_c, width, shortcut_strides)
        b_y += tl.load(p_s, mask=m_y, other=0.0).to(tl.float32)
    tl.store(y + map_offsets(i_n, o_p, o_c, width, y_strides), activate(b_y, FORM), mask=m_y)


def mix(u: Tensor, packed: Tensor, taps: int, y: Tensor, eps: float, form_y: int, shortcut: Tensor | None) -> None:
    """Everything behind the 1x1: fill `y` from the scratch map `u`."""
    n, c, h, w = y.shape
    config = tile("alk_mix", u, channels=c, taps=taps)
    launch(
        mix_kernel,
        (n * cdiv(h * w, config["BP"]),),
        u,
        packed,
        shortcut,
        y,
        h * w,
        h,
        w,
        strides(u),
        None if shortcut is None else strides(shortcut),
        strides(y),
        eps,
        T=taps,
        C=c,
        CP=u.shape[1],
        GELU=form(1, u),
        FORM=form_y,
        BC=block(u.shape[1]),
        **config,
    )


def before(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Packing, Tile | None]:
    """What the product in front has to write, u and packed weights; with launch options for the Toeplitz form."""
    c, taps = weights[0].shape[0], weights[1].shape[2]
    toeplitz = toeplitz_tile(x, c, taps)
    if toeplitz is None:
        u = scratch_map(x, c)
        return u, weight_rows(u, weights), None
    u = alk_toeplitz.planar_map(x, c)
    return u, bands(u, u.shape[1], weights[1], weights[3], weights[5]), toeplitz


def behind(
    u: Tensor,
    packed: Tensor,
    toeplitz: Tile | None,
    weights: Sequence[Tensor],
    y: Tensor,
    eps: float,
    form_y: int,
    shortcut: Tensor | None = None,
) -> None:
    """Everything behind the 1x1, with what `before` gave."""
    if toeplitz is None:
        mix(u, packed, weights[1].shape[2], y, eps, form_y, shortcut)
    else:
        alk_toeplitz.mix(u, packed, weights, y, eps, form_y, shortcut, toeplitz)


def alk_conv(x: Tensor, *rest: Tensor | float) -> Tensor:
    *weights, eps, activation = rest
    y = empty_map(x, weights[0].shape[0])
    if y.numel() == 0:
        return y
    u, packing, toeplitz = before(x, weights)
    product([x], [Output(u, [matrix(weights[0])])], [packing])
    behind(u, packing.to, toeplitz, weights, y, eps, form(activation, x))
    return y
