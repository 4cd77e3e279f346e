"""Depthwise convolutions of stride 1 that keep the size, their transposes and their weights' gradients.

    depthwise:         y = act(pre),  pre_p = sum_t u_(p + t) w_t + bias + shortcut_p;  with grad: y = grad * act'(pre)
                       flipped: the transpose, u_(p - t) in place of u_(p + t)
    weight_gradients:  dw_t = sum_p g_p u_(p + t),  dbias = sum_p g_p

Triton cannot shift along shared memory, so every tap is a load of its own; neighbours' loads hit the first-level cache.
Maps between kernels are padded scratch maps (maps.py), weights are packed beforehand as rows of channels (packing.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.activation import activate, derivative
from fastsr.kernels.config import tile
from fastsr.kernels.launch import block, cdiv, launch, strides
from fastsr.kernels.maps import map_offsets, pixel_offsets, tile_of_image
from fastsr.kernels.partials import empty_partials, sum_partials

MAX_COLUMNS = 64  # channels of a tile of the weight gradient
MAX_PARTS = 128  # rows of partial sums of the weight gradients


@triton.jit
def row(packed, i_row, o_c, CP: tl.constexpr):
    """Row `i_row` of packed parameters as [1, BC]."""
    return tl.load(packed + i_row * CP + o_c, mask=o_c < CP, other=0.0)[None, :]


@triton.jit
def depthwise_kernel(
    u,
    packed,
    shortcut,
    grad,
    y,
    pixels,
    height,
    width,
    u_strides,
    shortcut_strides,
    grad_strides,
    y_strides,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FLIP: tl.constexpr,
    BIAS: tl.constexpr,
    FORM: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    i_n, o_p, m_p = tile_of_image(tl.program_id(0), pixels, BP)
    i_h = o_p // width
    i_w = o_p % width
    o_c = tl.arange(0, BC)
    p_u = u + map_offsets(i_n, o_p, o_c, width, u_strides)
    m_u = (o_c < IN)[None, :]
    b_y = tl.zeros([BP, BC], tl.float32)
    for t in tl.static_range(KH * KW):
        y_shift = (t // KW - KH // 2) * (-1 if FLIP else 1)
        x_shift = (t % KW - KW // 2) * (-1 if FLIP else 1)
        m_t = m_p & (i_h + y_shift >= 0) & (i_h + y_shift < height) & (i_w + x_shift >= 0) & (i_w + x_shift < width)
        b_u = tl.load(p_u + (y_shift * u_strides[2] + x_shift * u_strides[3]), mask=m_t[:, None] & m_u, other=0.0)
        b_y += b_u.to(tl.float32) * row(packed, t, o_c, CP)
    if BIAS:
        b_y += row(packed, KH * KW, o_c, CP)
    m_y = m_p[:, None] & (o_c < C)[None, :]
    if shortcut is not None:
        p_s = shortcut + map_offsets(i_n, o_p, o_c, width, shortcut_strides)
        b_y += tl.load(p_s, mask=m_y, other=0.0).to(tl.float32)
    if grad is not None:
        b_g = tl.load(grad + map_offsets(i_n, o_p, o_c, width, grad_strides), mask=m_y, other=0.0).to(tl.float32)
        b_y = b_g * derivative(b_y, FORM)
    else:
        b_y = activate(b_y, FORM)
    p_y = y + map_offsets(i_n, o_p, o_c, width, y_strides)
    tl.store(p_y, b_y, mask=m_p[:, None] & (o_c < OUT)[None, :])


@triton.jit
def filter_gradient(
    g,
    u,
    p_part,
    g_strides,
    u_strides,
    tiles,
    pixels,
    height,
    width,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TAPS: tl.constexpr,
    BIASED: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BT: tl.constexpr,
):
    """The program's part of one filter's gradients [C, TAPS], behind them those of its biases."""
    o_c = tl.program_id(2) * BC + tl.arange(0, BC)
    m_c = (o_c < C)[None, None, :]
    o_t = tl.arange(0, BT)
    y_shift = (o_t // KW - KH // 2)[:, None, None]
    x_shift = (o_t % KW - KW // 2)[:, None, None]
    b_dw = tl.zeros([BT, BP, BC], tl.float32)
    b_db = tl.zeros([BP, BC], tl.float32)
    for i_tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        i_n, o_p, m_p = tile_of_image(i_tile, pixels, BP)
        i_h = (o_p // width)[None, :, None] + y_shift
        i_w = (o_p % width)[None, :, None] + x_shift
        p_g = g + map_offsets(i_n, o_p, o_c, width, g_strides)
        b_g = tl.load(p_g, mask=m_p[:, None] & (o_c < C)[None, :], other=0.0).to(tl.float32)
        p_u = u + pixel_offsets(i_n, o_p, width, u_strides)[None, :, None] + o_c[None, None, :] * u_strides[1]
        m_t = (o_t < TAPS)[:, None, None] & m_p[None, :, None]
        m_t = m_t & (i_h >= 0) & (i_h < height) & (i_w >= 0) & (i_w < width)
        b_u = tl.load(p_u + (y_shift * u_strides[2] + x_shift * u_strides[3]), mask=m_t & m_c, other=0.0)
        b_dw += b_u.to(tl.float32) * b_g[None, :, :]
        if BIASED:
            b_db += b_g
    p_dw = p_part + o_c[None, :] * TAPS + o_t[:, None]
    tl.store(p_dw, tl.sum(b_dw, 1), mask=(o_t < TAPS)[:, None] & (o_c < C)[None, :])
    if BIASED:
        tl.store(p_part + C * TAPS + o_c, tl.sum(b_db, 0), mask=o_c < C)


@triton.jit
def depthwise_weight_gradient_kernel(
    gs,
    u,
    partials,
    g_strides,
    u_strides,
    tiles,
    pixels,
    height,
    width,
    C: tl.constexpr,
    KHS: tl.constexpr,
    KWS: tl.constexpr,
    TAPS: tl.constexpr,
    BIASED: tl.constexpr,
    ROW: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BTS: tl.constexpr,
):
    p_part = partials + tl.program_id(0).to(tl.int64) * ROW
    first = 0
    for j in tl.static_range(len(KHS)):
        if tl.program_id(1) == j:
            filter_gradient(
                gs[j], u, p_part + first, g_strides[j], u_strides, tiles, pixels, height, width,
                C, KHS[j], KWS[j], TAPS[j], BIASED, BP, BC, BTS[j],
            )  # fmt: skip
        first += C * TAPS[j] + (C if BIASED else 0)


def depthwise(
    u: Tensor,
    packed: Tensor,
    y: Tensor,
    channels: int,
    kernel: tuple[int, int],
    *,
    flip: bool = False,
    bias: bool = False,
    form: int = 0,
    shortcut: Tensor | None = None,
    grad: Tensor | None = None,
) -> None:
    """Fill `y` from `u`, with `channels` channels and perhaps padding; `packed` holds the taps, then with `bias` it."""
    n, _, h, w = u.shape
    padded = packed.shape[1]
    config = tile("depthwise", u, channels=padded, taps=kernel[0] * kernel[1])
    launch(
        depthwise_kernel,
        (n * cdiv(h * w, config["BP"]),),
        u,
        packed,
        shortcut,
        grad,
        y,
        h * w,
        h,
        w,
        strides(u),
        None if shortcut is None else strides(shortcut),
        None if grad is None else strides(grad),
        strides(y),
        IN=u.shape[1],
        OUT=y.shape[1],
        C=channels,
        CP=padded,
        KH=kernel[0],
        KW=kernel[1],
        FLIP=flip,
        BIAS=bias,
        FORM=form,
        BC=block(padded),
        **config,
    )


def depthwise_weight_gradients(
    gs: Sequence[Tensor], u: Tensor, d_weights: Sequence[Tensor], d_biases: Sequence[Tensor] | None = None
) -> None:
    """Fill `d_weights` (per map of `gs`, contiguous [C, 1, kh, kw]) and `d_biases`; all maps of `gs` follow `u`."""
    n, _, h, w = u.shape
    c = d_weights[0].shape[0]
    heights, widths = (tuple(d.shape[i] for d in d_weights) for i in (2, 3))
    taps = tuple(kh * kw for kh, kw in zip(heights, widths, strict=True))
    config = tile("depthwise_weight_gradient", u, channels=c, taps=max(taps))
    channels = block(c, most=MAX_COLUMNS)
    tiles = n * cdiv(h * w, config["BP"])
    targets = list(d_weights)
    if d_biases is not None:
        targets = [t for pair in zip(d_weights, d_biases, strict=True) for t in pair]
    partials = empty_partials(u, min(tiles, MAX_PARTS), sum(t.numel() for t in targets))
    launch(
        depthwise_weight_gradient_kernel,
        (partials.shape[0], len(gs), cdiv(c, channels)),
        tuple(gs),
        u,
        partials,
        tuple(strides(g) for g in gs),
        strides(u),
        tiles,
        h * w,
        h,
        w,
        C=c,
        KHS=heights,
        KWS=widths,
        TAPS=taps,
        BIASED=d_biases is not None,
        ROW=partials.shape[1],
        BC=channels,
        BTS=tuple(block(t) for t in taps),
        **config,
    )
    sum_partials(partials, targets)
