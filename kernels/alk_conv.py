"""alk_conv: the asymmetric large-kernel convolution; alk_stage.py builds on the same kernels.

    u = x W_pw^T
    v, h, s = depthwise k x 1, 1 x k and 3 x 3 of u, each with bias
    xhat, r = normalise(GELU(v) + GELU(h) + GELU(s));  pre = xhat * norm_weight + norm_bias + shortcut;  y = act(pre)

    gy = grad * act'(pre) = dshortcut;  da = normalise_backward(gy * norm_weight)
    dv, dh, ds = da * GELU'(v), da * GELU'(h), da * GELU'(s);  du = the three transposed convolutions, added up
    dx = du W_pw;  dW_pw = du^T x;  and the sums over pixels of the depthwise weights, biases and the norm

The 1x1 is a product (products.py); `mix_kernel` does everything behind it with one load per tap, shared by the three
branches. In half precision alk_toeplitz.py takes its place where the tables say so. Backward saves the inputs only: u
and the branches are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels import alk_toeplitz
from fastsr.kernels.activation import activate, derivative, form
from fastsr.kernels.alk_toeplitz import toeplitz_tile
from fastsr.kernels.config import Tile, tile
from fastsr.kernels.depthwise import depthwise_weight_gradients, pack, row
from fastsr.kernels.launch import block, cdiv, launch, strides
from fastsr.kernels.maps import map_offsets, scratch_map, tile_of_image
from fastsr.kernels.partials import empty_partials, sum_partials
from fastsr.kernels.pixel_norm import normalise, normalise_backward
from fastsr.kernels.products import Output, matrix, product, weight_gradients
from fastsr.ops._define import empty_map

MAX_PARTS = 512  # rows of partial sums of the norm's and the biases' gradients
OUTSIDE = tl.constexpr(-(2**30))  # the row of a pixel beyond the image's last: no shift brings it back
UNROLLED = tl.constexpr(17)  # taps
SUMS = 5  # of a row: gradients of the three biases, the norm's weight and the norm's bias


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
    partials,
    tiles,
    pixels,
    height,
    width,
    grad_strides,
    u_strides,
    shortcut_strides,
    eps,
    T: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
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
        i_n, o_p, m_p = tile_of_image(i_tile, pixels, BP)
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
        b_dw += b_g * b_xhat
        b_db += b_g
        b_da = normalise_backward(b_g * b_w, b_xhat, b_r, C)
        b_v = b_da * derivative(b_v, GELU)
        tl.store(dv + o_u, b_v, mask=m_u)
        b_dv += b_v
        b_h = b_da * derivative(b_h, GELU)
        tl.store(dh + o_u, b_h, mask=m_u)
        b_dh += b_h
        b_s = b_da * derivative(b_s, GELU)
        tl.store(ds + o_u, b_s, mask=m_u)
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


def pack_weights(u: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Depthwise taps, biases and the norm's parameters as rows; `weights` as in ALKConvWeights."""
    _, lora1, lora1_bias, lora2, lora2_bias, small, small_bias, norm_weight, norm_bias = weights
    vectors = (lora1_bias, lora2_bias, small_bias, norm_weight, norm_bias)
    return pack(u, [lora1, lora2, small, *(v.unsqueeze(1) for v in vectors)])


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


def mix_backward(
    grad: Tensor,
    u: Tensor,
    packed: Tensor,
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    eps: float,
    form_y: int,
    shortcut: Tensor | None,
    d_shortcut: Tensor | None,
) -> Tensor:
    """The gradient of `u`, as a scratch map. Fills `gradients`, all of ALKConvWeights but the first."""
    n, c, h, w = grad.shape
    taps, padded = weights[1].shape[2], u.shape[1]
    dv, dh, ds, du = (torch.empty_like(u) for _ in range(4))
    config = tile("alk_mix_backward", u, channels=c, taps=taps)
    tiles = n * cdiv(h * w, config["BP"])
    partials = empty_partials(u, min(tiles, MAX_PARTS), SUMS, c)
    operands = (grad, u, packed, shortcut, d_shortcut, dv, dh, ds, partials, tiles, h * w, h, w, strides(grad))
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
        GELU=form(1, u),
        FORM=form_y,
        BC=block(padded),
        **config,
    )
    sum_partials(partials, [gradients[i] for i in (1, 3, 5, 6, 7)])
    depthwise_weight_gradients([dv, dh, ds], u, [gradients[i] for i in (0, 2, 4)])
    config = tile("alk_transpose", u, channels=c, taps=taps)
    grid = (n * cdiv(h * w, config["BP"]),)
    operands = (dv, dh, ds, packed, du, h * w, h, w, strides(u))
    launch(transpose_kernel, grid, *operands, T=taps, CP=padded, BC=block(padded), **config)
    return du


def u_map(x: Tensor, channels: int, taps: int) -> tuple[Tensor, Tile | None]:
    """Room for u as the forward's form reads it, and the Toeplitz form's launch options if it is that one."""
    toeplitz = toeplitz_tile(x, channels, taps)
    return (scratch_map if toeplitz is None else alk_toeplitz.planar_map)(x, channels), toeplitz


def finish(
    u: Tensor,
    toeplitz: Tile | None,
    weights: Sequence[Tensor],
    y: Tensor,
    eps: float,
    form_y: int,
    shortcut: Tensor | None = None,
) -> None:
    """Everything behind the 1x1, from what `u_map` gave."""
    if toeplitz is None:
        mix(u, pack_weights(u, weights), weights[1].shape[2], y, eps, form_y, shortcut)
    else:
        alk_toeplitz.mix(u, weights, y, eps, form_y, shortcut, toeplitz)


def alk_conv(x: Tensor, *rest: Tensor | float) -> Tensor:
    *weights, eps, activation = rest
    c = weights[0].shape[0]
    y = empty_map(x, c)
    if y.numel() == 0:
        return y
    u, toeplitz = u_map(x, c, weights[1].shape[2])
    product([x], [Output(u, [matrix(weights[0])])])
    finish(u, toeplitz, weights, y, eps, form(activation, x))
    return y


def alk_conv_backward(grad: Tensor, x: Tensor, *rest: Tensor | float) -> tuple[Tensor, ...]:
    *weights, eps, activation = rest
    dx = empty_map(x, x.shape[1])
    gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in weights]
    if grad.numel() == 0:
        return dx, *(g.zero_() for g in gradients)
    c = weights[0].shape[0]
    u = scratch_map(x, c)
    product([x], [Output(u, [matrix(weights[0])])])
    packed = pack_weights(u, weights)
    du = mix_backward(grad, u, packed, weights, gradients[1:], eps, form(activation, x), None, None)[:, :c]
    product([du], [Output(dx, [matrix(weights[0]).t()])])
    weight_gradients([du], [x], [gradients[0]], [None])
    return dx, *gradients
