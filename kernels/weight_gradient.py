"""Gradients of convolution weights: sums over all pixels, without atomics.

dense:      dw[k, c, t] = sum_p x[stride * p + t - padding, c] g[p, k];  db[k] = sum_p g[p, k]
depthwise:  dw[c, t] = sum_p x[stride * p + t - padding, c] g[p, c];     db[c] = sum_p g[p, c]

A program adds up one range of tiles for some taps and channels and writes float32 partial sums, which lie as [t, k, c]
or [t, c]; kernels/partials.py adds them up. The ranges depend on the sizes only: repeated runs are bit-equal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.config import Tile, tile
from fastsr.kernels.launch import MIN_DOT, block, cdiv, dot_precision, launch
from fastsr.kernels.partials import empty_partials, sum_partials
from fastsr.kernels.taps import dot_tile, inside, load_map, pixels_at, strides_of, tile_pixels, vector

DENSE_RANGES, DEPTHWISE_RANGES = 32, 256  # of tiles, at most: how many partial sums there are of each gradient


@triton.jit(do_not_specialize=["H", "W", "GH", "GW", "tiles", "per_range", "size"])
def dense_kernel(
    x,
    g,
    partials,
    x_strides,
    g_strides,
    H,
    W,
    GH,
    GW,
    tiles,
    per_range,
    size,
    C: tl.constexpr,
    K: tl.constexpr,
    GK: tl.constexpr,
    X_VECTOR: tl.constexpr,
    G_VECTOR: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks_k = tl.cdiv(K, BK)
    blocks = tl.cdiv(C, BC) * blocks_k
    i_t = tl.program_id(0) // blocks  # SIDE * SIDE stands for the bias
    o_c = tl.program_id(0) % blocks // blocks_k * BC + tl.arange(0, BC)
    o_k = tl.program_id(0) % blocks_k * BK + tl.arange(0, BK)
    first = tl.program_id(1) * per_range
    last = tl.minimum(first + per_range, tiles)
    p_part = partials + tl.program_id(1).to(tl.int64) * size
    if i_t < SIDE * SIDE:
        b_dw = tl.zeros([BK, BC], tl.float32)
        for i in tl.range(first, last, num_stages=STAGES):
            i_n, o_h, o_w = tile_pixels(i, GH, GW, BH, BW)
            m_p = inside(o_h, o_w, GH, GW)
            b_g = load_map(g, pixels_at(i_n, o_h, o_w, g_strides, G_VECTOR), m_p, o_k, GK, g_strides)
            o_h = o_h * STRIDE + (i_t // SIDE - PADDING)
            o_w = o_w * STRIDE + (i_t % SIDE - PADDING)
            m_p &= inside(o_h, o_w, H, W)
            b_x = load_map(x, pixels_at(i_n, o_h, o_w, x_strides, X_VECTOR), m_p, o_c, C, x_strides)
            b_dw = tl.dot(tl.trans(b_g), b_x, b_dw, input_precision=PRECISION)
        p_dw = p_part + (i_t * K + o_k)[:, None] * C + o_c[None, :]
        tl.store(p_dw, b_dw, mask=(o_k < K)[:, None] & (o_c < C)[None, :])
    else:
        b_db = tl.zeros([BH * BW, BK], tl.float32)
        for i in range(first, last):
            i_n, o_h, o_w = tile_pixels(i, GH, GW, BH, BW)
            m_p = inside(o_h, o_w, GH, GW)
            o_p = pixels_at(i_n, o_h, o_w, g_strides, G_VECTOR)
            b_db += load_map(g, o_p, m_p, o_k, GK, g_strides).to(tl.float32)
        tl.store(p_part + SIDE * SIDE * K * C + o_k, tl.sum(b_db, 0), mask=o_k < K)


@triton.jit(do_not_specialize=["H", "W", "GH", "GW", "tiles", "per_range", "size"])
def depthwise_kernel(
    x,
    g,
    partials,
    x_strides,
    g_strides,
    H,
    W,
    GH,
    GW,
    tiles,
    per_range,
    size,
    C: tl.constexpr,
    X_VECTOR: tl.constexpr,
    G_VECTOR: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
):
    # A program does a row of three taps; a fourth column, whose x is 1, gives the bias.
    i_r = tl.program_id(0) % 3
    o_c = tl.program_id(0) // 3 * BC + tl.arange(0, BC)
    o_t = tl.arange(0, 4)
    m_t = o_t < 3
    first = tl.program_id(1) * per_range
    last = tl.minimum(first + per_range, tiles)
    b_sum = tl.zeros([4, BH * BW, BC], tl.float32)
    for i in range(first, last):
        i_n, o_h, o_w = tile_pixels(i, GH, GW, BH, BW)
        m_p = inside(o_h, o_w, GH, GW)
        o_p = pixels_at(i_n, o_h, o_w, g_strides, G_VECTOR)
        b_g = load_map(g, o_p, m_p, o_c, C, g_strides).to(tl.float32)
        o_h = (o_h * STRIDE + (i_r - PADDING))[None, :]
        o_w = (o_w * STRIDE)[None, :] + (o_t - PADDING)[:, None]  # [taps, pixels]
        p_x = x + pixels_at(i_n, o_h, o_w, x_strides, X_VECTOR)[:, :, None]
        p_x += (o_c.to(tl.int64) * x_strides[1])[None, None, :]
        m_x = inside(o_h, o_w, H, W) & m_p[None, :] & m_t[:, None]
        b_x = tl.load(p_x, mask=m_x[:, :, None] & (o_c < C)[None, None, :], other=0.0).to(tl.float32)
        b_sum += tl.where(m_t[:, None, None], b_x, 1.0) * b_g[None, :, :]
    p_sum = partials + tl.program_id(1).to(tl.int64) * size
    p_sum += tl.where(m_t, i_r * 3 + o_t, 9)[:, None] * C + o_c[None, :]
    m_t |= o_t < 4 - 4 * i_r  # the first row of taps writes the bias
    tl.store(p_sum, tl.sum(b_sum, 1), mask=m_t[:, None] & (o_c < C)[None, :])


def ranges_of(g: Tensor, config: Tile, size: int, most: int) -> tuple[Tensor, int, int]:
    """Room for partial sums of `size` over the tiles of `g`, the number of tiles, and how many a range has."""
    tiles = max(1, g.shape[0] * cdiv(g.shape[2], config["BH"]) * cdiv(g.shape[3], config["BW"]))
    per_range = cdiv(tiles, most)
    return empty_partials(g, cdiv(tiles, per_range), size), tiles, per_range


def dense(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0
) -> tuple[Tensor, Tensor]:
    """The gradients of `weight` [K, C, s, s] and `bias` [K] of a convolution of `x`, `g` being its output's gradient.

    `g` may have more than K channels.
    """
    k, c, side, _ = weight.shape
    config = dot_tile("dense_gradient", x, channels=max(c, k))
    block_c, block_k = (block(extent, MIN_DOT, config["BC"]) for extent in (c, k))
    partials, tiles, per_range = ranges_of(g, config, side * side * k * c + k, DENSE_RANGES)
    grid = (side * side * cdiv(c, block_c) * cdiv(k, block_k) + cdiv(k, block_k), partials.shape[0])
    shapes = (*x.shape[2:], *g.shape[2:], tiles, per_range, partials.shape[1])
    maps = {"C": c, "K": k, "GK": g.shape[1], "X_VECTOR": vector(x), "G_VECTOR": vector(g)}
    maps |= {"SIDE": side, "STRIDE": stride, "PADDING": padding}
    config |= {"BC": block_c, "BK": block_k}
    operands = (x, g, partials, strides_of(x), strides_of(g), *shapes)
    launch(dense_kernel, grid, *operands, **maps, PRECISION=dot_precision(x), **config)
    by_tap, d_bias = weight.new_empty(side * side, k, c), torch.empty_like(bias)
    sum_partials(partials, [by_tap, d_bias])
    return by_tap.permute(1, 2, 0).contiguous().view(weight.shape), d_bias


def depthwise(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 1
) -> tuple[Tensor, Tensor]:
    """The same for a depthwise convolution: weight [C, 1, 3, 3], bias [C]."""
    c = weight.shape[0]
    config = tile("depthwise_gradient", x, channels=c)
    config["BC"] = block(c, most=config["BC"])
    partials, tiles, per_range = ranges_of(g, config, 10 * c, DEPTHWISE_RANGES)
    shapes = (*x.shape[2:], *g.shape[2:], tiles, per_range, partials.shape[1])
    maps = {"C": c, "X_VECTOR": vector(x), "G_VECTOR": vector(g), "STRIDE": stride, "PADDING": padding}
    operands = (x, g, partials, strides_of(x), strides_of(g), *shapes)
    launch(depthwise_kernel, (3 * cdiv(c, config["BC"]), partials.shape[0]), *operands, **maps, **config)
    by_tap, d_bias = weight.new_empty(9, c), torch.empty_like(bias)
    sum_partials(partials, [by_tap, d_bias])
    return by_tap.t().contiguous().view(weight.shape), d_bias
