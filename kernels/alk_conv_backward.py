"""The backward of alk_conv and alk_stage; nothing but the inputs is kept from the forward.

gy = grad * act'(pre) = dshortcut;  da = normalise_backward(gy * norm_weight)
dv, dh, ds = da * GELU'(v), da * GELU'(h), da * GELU'(s)                                        # mix_backward_kernel
du = the three transposed convolutions, added up                                                   # transpose_kernel
dx = du W_pw;  dW_pw = du^T x;  and the sums over pixels of the depthwise weights, biases and the norm

In half precision alk_toeplitz_backward.py takes the place of transpose_kernel and of the depthwise weights' sums, where
the tables say so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels import alk_toeplitz_backward
from fastsr.kernels.activation import activate, derivative, form
from fastsr.kernels.alk_taps import OUTSIDE, UNROLLED, branches, weight_rows
from fastsr.kernels.alk_toeplitz import toeplitz_tile
from fastsr.kernels.config import Tile, tile
from fastsr.kernels.depthwise import depthwise_weight_gradients, row
from fastsr.kernels.launch import block, cdiv, launch, strides
from fastsr.kernels.maps import map_offsets, scratch_map, tile_of_image
from fastsr.kernels.packing import Packing, bands
from fastsr.kernels.partials import empty_partials, sum_partials
from fastsr.kernels.pixel_norm import normalise, normalise_backward
from fastsr.kernels.products import Output, matrix, product, weight_gradients
from fastsr.ops._define import empty_map

MAX_PARTS = 512  # rows of partial sums of the norm's and the biases' gradients
SUMS = 5  # of a row: gradients of the three biases, the norm's weight and the norm's bias


@triton.jit
def tile_of_row(i_tile, height, width, planar_width, PLANES: tl.constexpr, BP: tl.constexpr):
    """As tile_of_image, but a tile lies within one row and begins at a multiple of BP; and its offsets in a plane."""
    across = tl.cdiv(width, BP)
    i_y = i_tile // across % height
    i_n = i_tile // (across * height)
    o_w = i_tile % across * BP + tl.arange(0, BP)
    o_d = (i_n.to(tl.int64) * (PLANES * height) + i_y) * planar_width + o_w
    return i_n, i_y * width + o_w, o_w < width, o_d


@triton.jit
def mix_backward_kernel(
    grad,
    u,
    packed,
    shortcut,
    d_shortcut,
    dv,
    dh,
    ds,
    planar_u,  # with it, dv, dh and ds are planar as well
    partials,
    tiles,
    pixels,
    height,
    width,
    planar_width,
    grad_strides,
    u_strides,
    shortcut_strides,
    eps,
    T: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    PLANES: tl.constexpr,
    GELU: tl.constexpr,
    FORM: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    b_w = row(packed, 2 * T + 12, o_c, CP)
    b_dv = tl.zeros([BP, BC], tl.float32)
    b_dh = tl.zeros([BP, BC], tl.float32)
    b_ds = tl.zeros([BP, BC], tl.float32)
    b_dw = tl.zeros([BP, BC], tl.float32)
    b_db = tl.zeros([BP, BC], tl.float32)
    for i_tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if planar_u is None:
            i_n, o_p, m_p = tile_of_image(i_tile, pixels, BP)
        else:
            i_n, o_p, m_p, o_d = tile_of_row(i_tile, height, width, planar_width, PLANES, BP)
            o_d = o_d[:, None] + (o_c * (height * planar_width))[None, :]
        i_h = tl.where(m_p, o_p // width, OUTSIDE)
        o_u = map_offsets(i_n, o_p, o_c, width, u_strides)
        b_v, b_h, b_s = branches(u + o_u, packed, i_h, o_p % width, o_c, height, width, T, CP, BP)
        b_a = tl.where(m_c, activate(b_v, GELU) + activate(b_h, GELU) + activate(b_s, GELU), 0.0)
        b_xhat, b_r = normalise(b_a, m_c, eps, C)
        m_y = m_p[:, None] & m_c
        b_g = tl.load(grad + map_offsets(i_n, o_p, o_c, width, grad_strides), mask=m_y, other=0.0).to(tl.float32)
        b_y = b_xhat * b_w + row(packed, 2 * T + 13, o_c, CP)
        if shortcut is not None:
            p_s = shortcut + map_offsets(i_n, o_p, o_c, width, shortcut_strides)
            b_y += tl.load(p_s, mask=m_y, other=0.0).to(tl.float32)
        b_g *= derivative(b_y, FORM)
        m_u = m_p[:, None] & (o_c < CP)[None, :]
        if d_shortcut is not None:
            tl.store(d_shortcut + o_u, b_g, mask=m_u)
        if planar_u is None:
            o_d = o_u
        else:
            b_u = tl.load(u + o_u, mask=m_u, other=0.0)
            m_u = m_p[:, None] & (o_c < PLANES)[None, :]
            tl.store(planar_u + o_d, b_u, mask=m_u)
        b_dw += b_g * b_xhat
        b_db += b_g
        b_da = normalise_backward(b_g * b_w, b_xhat, b_r, C)
        b_v = b_da * derivative(b_v, GELU)
        tl.store(dv + o_d, b_v, mask=m_u)
        b_dv += b_v
        b_h = b_da * derivative(b_h, GELU)
        tl.store(dh + o_d, b_h, mask=m_u)
        b_dh += b_h
        b_s = b_da * derivative(b_s, GELU)
        tl.store(ds + o_d, b_s, mask=m_u)
        b_ds += b_s
    p_part = partials + tl.program_id(0) * (5 * C) + o_c
    tl.store(p_part, tl.sum(b_dv, 0), mask=o_c < C)
    tl.store(p_part + C, tl.sum(b_dh, 0), mask=o_c < C)
    tl.store(p_part + 2 * C, tl.sum(b_ds, 0), mask=o_c < C)
    tl.store(p_part + 3 * C, tl.sum(b_dw, 0), mask=o_c < C)
    tl.store(p_part + 4 * C, tl.sum(b_db, 0), mask=o_c < C)


@triton.jit
def vertical(dv, packed, t, i_h, o_c, height, width, T: tl.constexpr, CP: tl.constexpr):
    """Tap t of the transposed vertical convolution."""
    shift = T // 2 - t
    m_y = ((i_h + shift).to(tl.uint32, bitcast=True) < height)[:, None] & (o_c < CP)[None, :]
    return tl.load(dv + shift * width * CP, mask=m_y, other=0.0).to(tl.float32) * row(packed, t, o_c, CP)


@triton.jit
def horizontal(dh, packed, t, i_w, m_here, o_c, width, T: tl.constexpr, CP: tl.constexpr):
    """Tap t of the transposed horizontal convolution."""
    shift = T // 2 - t
    m_x = m_here & ((i_w + shift).to(tl.uint32, bitcast=True) < width)[:, None]
    return tl.load(dh + shift * CP, mask=m_x, other=0.0).to(tl.float32) * row(packed, T + t, o_c, CP)


@triton.jit
def transpose_kernel(
    dv,
    dh,
    ds,
    packed,
    du,
    pixels,
    height,
    width,
    u_strides,
    T: tl.constexpr,
    CP: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    i_n, o_p, m_p = tile_of_image(tl.program_id(0), pixels, BP)
    i_h = tl.where(m_p, o_p // width, OUTSIDE)
    i_w = o_p % width
    o_c = tl.arange(0, BC)
    m_c = (o_c < CP)[None, :]
    m_here = m_p[:, None] & m_c
    o_u = map_offsets(i_n, o_p, o_c, width, u_strides)
    b_du = tl.zeros([BP, BC], tl.float32)
    if T <= UNROLLED:
        for t in tl.static_range(T):
            b_du += vertical(dv + o_u, packed, t, i_h, o_c, height, width, T, CP)
        for t in tl.static_range(T):
            b_du += horizontal(dh + o_u, packed, t, i_w, m_here, o_c, width, T, CP)
    else:
        for t in range(T):
            b_du += vertical(dv + o_u, packed, t, i_h, o_c, height, width, T, CP)
        for t in range(T):
            b_du += horizontal(dh + o_u, packed, t, i_w, m_here, o_c, width, T, CP)
    for t in tl.static_range(9):
        m_y = ((i_h + (1 - t // 3)).to(tl.uint32, bitcast=True) < height)[:, None] & m_c
        m_x = ((i_w + (1 - t % 3)).to(tl.uint32, bitcast=True) < width)[:, None]
        b_d = tl.load(ds + o_u + ((1 - t // 3) * width + 1 - t % 3) * CP, mask=m_y & m_x, other=0.0).to(tl.float32)
        b_du += b_d * row(packed, 2 * T + t, o_c, CP)
    tl.store(du + o_u, b_du, mask=m_here)


def before_backward(u: Tensor, weights: Sequence[Tensor]) -> tuple[list[Packing], Tile | None]:
    """What the product that makes `u` has to pack, and the Toeplitz form's launch options if it is that one."""
    toeplitz = toeplitz_tile(u, weights[0].shape[0], weights[1].shape[2], "alk_toeplitz_transpose")
    packings = [weight_rows(u, weights)]
    if toeplitz is not None:
        packings.append(bands(u, block(weights[0].shape[0]), weights[1], weights[3], weights[5], flip=True))
    return packings, toeplitz


def mix_backward(
    grad: Tensor,
    u: Tensor,
    packings: Sequence[Packing],
    toeplitz: Tile | None,
    gradients: Sequence[Tensor],
    eps: float,
    form_y: int,
    shortcut: Tensor | None,
    d_shortcut: Tensor | None,
) -> Tensor:
    """The gradient of `u`, as a scratch map, with what `before_backward` gave.

    Fills `gradients`, all of ALKConvWeights but the first.
    """
    n, c, h, w = grad.shape
    taps, padded = gradients[0].shape[2], u.shape[1]
    d_filters, packed = [gradients[i] for i in (0, 2, 4)], packings[0].to
    config = tile("alk_mix_backward", u, channels=c, taps=taps)
    if toeplitz is None:
        maps = [torch.empty_like(u) for _ in range(3)]
        planes, across, tiles = [*maps, None], 1, n * cdiv(h * w, config["BP"])
    else:
        maps = alk_toeplitz_backward.planar_maps(u, c)
        planes, across, tiles = list(maps), maps.shape[-1], n * h * cdiv(w, config["BP"])
    partials = empty_partials(u, min(tiles, MAX_PARTS), SUMS, c)
    operands = (grad, u, packed, shortcut, d_shortcut, *planes, partials, tiles, h * w, h, w, across, strides(grad))
    launch(
        mix_backward_kernel,
        (partials.shape[0],),
        *operands,
        strides(u),
        None if shortcut is None else strides(shortcut),
        eps,
        T=taps,
        C=c,
        CP=padded,
        PLANES=block(c),
        GELU=form(1, u),
        FORM=form_y,
        BC=block(padded),
        **config,
    )
    sum_partials(partials, [gradients[i] for i in (1, 3, 5, 6, 7)])
    du = torch.empty_like(u)
    if isinstance(maps, Tensor) and toeplitz is not None:
        alk_toeplitz_backward.gradients(maps, packings[1].to, du, d_filters, c, toeplitz)
        return du
    depthwise_weight_gradients(maps, u, d_filters)
    config = tile("alk_transpose", u, channels=c, taps=taps)
    grid = (n * cdiv(h * w, config["BP"]),)
    operands = (*maps, packed, du, h * w, h, w, strides(u))
    launch(transpose_kernel, grid, *operands, T=taps, CP=padded, BC=block(padded), **config)
    return du


def alk_conv_backward(grad: Tensor, x: Tensor, *rest: Tensor | float) -> tuple[Tensor, ...]:
    *weights, eps, activation = rest
    dx = empty_map(x, x.shape[1])
    gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in weights]
    if grad.numel() == 0:
        return dx, *(g.zero_() for g in gradients)
    c = weights[0].shape[0]
    u = scratch_map(x, c)
    packings, toeplitz = before_backward(u, weights)
    product([x], [Output(u, [matrix(weights[0])])], packings)
    form_y = form(activation, x)
    du = mix_backward(grad, u, packings, toeplitz, gradients[1:], eps, form_y, None, None)[:, :c]
    product([du], [Output(dx, [matrix(weights[0]).t()])])
    weight_gradients([du], [x], [gradients[0]], [None])
    return dx, *gradients
