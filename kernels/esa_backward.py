"""The backward of esa. Nothing but x is kept from the forward: the side path runs again.

s = sigmoid(conv4(z));  dgate = grad x s (1 - s);  dz = conv4^T(dgate)                          # gate_backward_kernel
dout = bilinear^T(dz), gathered                                                              # enlarge_backward_kernel
dlow: back through the small convolutions and the pooling                                       # esa_low_backward.py
dc1 = conv_f^T(dz) + conv2^T(dlow);  dx = grad s + conv1^T(dc1)                                 # input_backward_kernel

Gradients of weights are float32 partial sums per program, added up in a fixed order (partials.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels import weight_gradient
from fastsr.kernels.activation import form
from fastsr.kernels.bilinear import share
from fastsr.kernels.config import tile
from fastsr.kernels.esa_low_backward import low_backward, store_matrix
from fastsr.kernels.esa_path import cells, gate_input, load_cells, load_filter, load_matrix, run_path, store_cells
from fastsr.kernels.launch import MIN_DOT, block, cdiv, dot_precision, launch, vectors
from fastsr.kernels.partials import empty_partials, sum_partials
from fastsr.kernels.taps import (
    dot_tile,
    inside,
    load_map,
    load_row,
    pixels_at,
    store_map,
    strides_of,
    tile_pixels,
    vector,
)
from fastsr.ops._define import empty_map

RANGES = 512  # of tiles, at most: rows of partial sums


@triton.jit(do_not_specialize=["H", "W", "SMALL_H", "SMALL_W", "tiles", "per_range"])
def gate_backward_kernel(
    grad,
    x,
    c1,
    out,
    conv_f,
    conv_f_bias,
    conv4,
    conv4_bias,
    dz,
    dx,
    partials,
    grad_strides,
    x_strides,
    dx_strides,
    H,
    W,
    SMALL_H,
    SMALL_W,
    ratio_h,
    ratio_w,
    tiles,
    per_range,
    C: tl.constexpr,
    GRAD_VECTOR: tl.constexpr,
    X_VECTOR: tl.constexpr,
    DX_VECTOR: tl.constexpr,
    f: tl.constexpr,
    F: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dz, grad s (into dx), and the gradients of conv4 and conv_f."""
    o_c = tl.arange(0, BC)
    o_f = tl.arange(0, F)
    dtype = c1.dtype.element_ty
    b_d4 = tl.zeros([BC, F], tl.float32)
    b_df = tl.zeros([F, F], tl.float32)
    b_d4_bias = tl.zeros([BC], tl.float32)
    b_df_bias = tl.zeros([F], tl.float32)
    first = tl.program_id(0) * per_range
    for i in range(first, tl.minimum(first + per_range, tiles)):
        i_n, o_h, o_w = tile_pixels(i, H, W, BH, BW)
        m_p = inside(o_h, o_w, H, W)
        b_c1, b_z = gate_input(
            c1, out, conv_f, conv_f_bias, i_n, o_h, o_w, m_p, H, W, SMALL_H, SMALL_W, ratio_h, ratio_w, f, F, PRECISION
        )
        b_z = b_z.to(dtype)
        b_w = load_matrix(conv4, o_f, o_c, f, C, 1, f, dtype)
        b_s = tl.sigmoid(tl.dot(b_z, b_w, input_precision=PRECISION) + load_row(conv4_bias, o_c, C))
        o_p = pixels_at(i_n, o_h, o_w, grad_strides, GRAD_VECTOR)
        b_grad = load_map(grad, o_p, m_p, o_c, C, grad_strides).to(tl.float32)
        b_x = load_map(x, pixels_at(i_n, o_h, o_w, x_strides, X_VECTOR), m_p, o_c, C, x_strides).to(tl.float32)
        o_p = pixels_at(i_n, o_h, o_w, dx_strides, DX_VECTOR)
        store_map(dx, o_p, m_p, o_c, C, dx_strides, b_grad * b_s)
        b_dgate = b_grad * b_x * b_s * (1.0 - b_s)
        b_d4_bias += tl.sum(b_dgate, 0)
        b_dgate = b_dgate.to(dtype)
        b_d4 = tl.dot(tl.trans(b_dgate), b_z, b_d4, input_precision=PRECISION)
        b_dz = tl.dot(b_dgate, load_matrix(conv4, o_c, o_f, C, f, f, 1, dtype), input_precision=PRECISION)
        b_df_bias += tl.sum(b_dz, 0)
        b_dz = b_dz.to(dtype)
        store_cells(dz, cells(i_n, o_h, o_w, H, W, F), m_p, F, b_dz)
        b_df = tl.dot(tl.trans(b_dz), b_c1, b_df, input_precision=PRECISION)
    p_sums = partials + tl.program_id(0).to(tl.int64) * (C * f + C + f * f + f)
    store_matrix(p_sums, b_d4, C, f, 1)
    tl.store(p_sums + C * f + o_c, b_d4_bias, mask=o_c < C)
    store_matrix(p_sums + C * f + C, b_df, f, f, 1)
    tl.store(p_sums + C * f + C + f * f + o_f, b_df_bias, mask=o_f < f)


@triton.jit(do_not_specialize=["H", "W", "SMALL_H", "SMALL_W"])
def enlarge_backward_kernel(
    dz, dout, H, W, SMALL_H, SMALL_W, ratio_h, ratio_w, F: tl.constexpr, BP: tl.constexpr, BO: tl.constexpr
):
    """A program gathers BP neighbouring small pixels of a row from the pixels they went to, BO columns at a time."""
    blocks = tl.cdiv(SMALL_W, BP)
    i_n = tl.program_id(0) // (SMALL_H * blocks)
    i_h = tl.program_id(0) // blocks % SMALL_H
    o_w = tl.program_id(0) % blocks * BP + tl.arange(0, BP)
    o_f = tl.arange(0, F)
    # Pixels whose position on the small map lies within 1 of the small pixel, and one more against rounding.
    top = tl.maximum(((2 * i_h - 1).to(tl.int64) * H // (2 * SMALL_H)).to(tl.int32) - 2, 0)
    bottom = tl.minimum(((2 * i_h + 3).to(tl.int64) * H // (2 * SMALL_H)).to(tl.int32) + 2, H)
    o_left = tl.maximum(((2 * o_w - 1).to(tl.int64) * W // (2 * SMALL_W)).to(tl.int32) - 2, 0)
    b_sum = tl.zeros([BP, BO, F], tl.float32)
    for i_y in range(top, bottom):
        for i in range(0, 2 * tl.cdiv(W, SMALL_W) + 4, BO):
            o_x = o_left[:, None] + i + tl.arange(0, BO)[None, :]
            b_share = share(o_x, o_w[:, None], ratio_w, SMALL_W) * share(o_x * 0 + i_y, i_h, ratio_h, SMALL_H)
            m_x = (o_x < W) & (o_w < SMALL_W)[:, None]
            p_dz = dz + cells(i_n, i_y, o_x, H, W, F)[:, :, None] + o_f[None, None, :]
            b_sum += b_share[:, :, None] * tl.load(p_dz, mask=m_x[:, :, None], other=0.0).to(tl.float32)
    store_cells(dout, cells(i_n, i_h, o_w, SMALL_H, SMALL_W, F), o_w < SMALL_W, F, tl.sum(b_sum, 1))


@triton.jit(do_not_specialize=["H", "W", "H2", "W2", "tiles", "per_range"])
def input_backward_kernel(
    x,
    c1,
    dz,
    dlow,
    weights,
    conv_f,
    dx,
    partials,
    x_strides,
    dx_strides,
    H,
    W,
    H2,
    W2,
    tiles,
    per_range,
    C: tl.constexpr,
    X_VECTOR: tl.constexpr,
    DX_VECTOR: tl.constexpr,
    f: tl.constexpr,
    F: tl.constexpr,
    SEPARABLE: tl.constexpr,
    PADDING: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds conv1^T(dc1) to dx; the gradients of conv1 and of conv2's pointwise weight."""
    o_c = tl.arange(0, BC)
    o_f = tl.arange(0, F)
    dtype = c1.dtype.element_ty
    b_d1 = tl.zeros([F, BC], tl.float32)
    b_d1_bias = tl.zeros([F], tl.float32)
    b_d2 = tl.zeros([F, F], tl.float32)
    first = tl.program_id(0) * per_range
    for i_tile in range(first, tl.minimum(first + per_range, tiles)):
        i_n, o_h, o_w = tile_pixels(i_tile, H, W, BH, BW)
        m_p = inside(o_h, o_w, H, W)
        o_p = cells(i_n, o_h, o_w, H, W, F)
        b_w = load_matrix(conv_f, o_f, o_f, f, f, f, 1, dtype)
        b_dc1 = tl.dot(load_cells(dz, o_p, m_p, F), b_w, input_precision=PRECISION)
        b_du = tl.zeros([BH * BW, F], tl.float32)
        for t in range(9):
            o_y, o_x = o_h + PADDING - t // 3, o_w + PADDING - t % 3
            m_t = m_p & inside(o_y, o_x, 2 * H2, 2 * W2) & (o_y % 2 == 0) & (o_x % 2 == 0)
            b_dlow = load_cells(dlow, cells(i_n, o_y // 2, o_x // 2, H2, W2, F), m_t, F)
            if SEPARABLE:
                b_du += b_dlow.to(tl.float32) * load_filter(weights[3], t, o_f, f)
            else:
                b_w = load_matrix(weights[2] + t, o_f, o_f, f, f, 9 * f, 9, dtype)
                b_dc1 = tl.dot(b_dlow, b_w, b_dc1, input_precision=PRECISION)
        if SEPARABLE:
            b_du = b_du.to(dtype)
            b_w = load_matrix(weights[2], o_f, o_f, f, f, f, 1, dtype)
            b_dc1 = tl.dot(b_du, b_w, b_dc1, input_precision=PRECISION)
            b_d2 = tl.dot(tl.trans(b_du), load_cells(c1, o_p, m_p, F), b_d2, input_precision=PRECISION)
        b_d1_bias += tl.sum(b_dc1, 0)
        b_dc1 = b_dc1.to(dtype)
        b_x = load_map(x, pixels_at(i_n, o_h, o_w, x_strides, X_VECTOR), m_p, o_c, C, x_strides)
        b_d1 = tl.dot(tl.trans(b_dc1), b_x, b_d1, input_precision=PRECISION)
        b_dx = tl.dot(b_dc1, load_matrix(weights[0], o_f, o_c, f, C, C, 1, dtype), input_precision=PRECISION)
        o_p = pixels_at(i_n, o_h, o_w, dx_strides, DX_VECTOR)
        b_dx += load_map(dx, o_p, m_p, o_c, C, dx_strides).to(tl.float32)
        store_map(dx, o_p, m_p, o_c, C, dx_strides, b_dx)
    p_sums = partials + tl.program_id(0).to(tl.int64) * (f * C + f + (f * f if SEPARABLE else 0))
    store_matrix(p_sums, b_d1, f, C, 1)
    tl.store(p_sums + f * C + o_f, b_d1_bias, mask=o_f < f)
    if SEPARABLE:
        store_matrix(p_sums + f * C + f, b_d2, f, f, 1)


def as_map(cells_of: Tensor) -> Tensor:
    """[N, H, W, F] as [N, F, H, W]."""
    return cells_of.permute(0, 3, 1, 2)


def ranges_of(x: Tensor, config: dict[str, int], size: int) -> tuple[Tensor, int, int]:
    """Room for partial sums of `size`, the number of tiles of `x`, and how many of them a program does."""
    tiles = x.shape[0] * cdiv(x.shape[2], config["BH"]) * cdiv(x.shape[3], config["BW"])
    per_range = cdiv(tiles, RANGES)
    return empty_partials(x, cdiv(tiles, per_range), size), tiles, per_range


def esa_backward(grad: Tensor, x: Tensor, weights: list[Tensor], conv2_padding: int) -> tuple[Tensor, list[Tensor]]:
    n, c, h, w = x.shape
    dx = empty_map(x, c)
    if x.numel() == 0:
        return dx, [p.new_zeros(p.shape) for p in weights]
    parameters, grads = tuple(vectors(weights)), [p.new_empty(p.shape) for p in weights]
    separable, f = len(weights) == 18, weights[0].shape[0]
    channels = block(f, MIN_DOT)
    path = run_path(x, parameters, conv2_padding, keep=True)
    (small_h, small_w), (h2, w2) = path.out.shape[1:3], path.low.shape[1:3]
    ratios = (small_h / h, small_w / w)
    precision = {"PRECISION": dot_precision(x)}
    maps = {"C": c, "X_VECTOR": vector(x), "DX_VECTOR": vector(dx), "f": f, "F": channels, "BC": block(c, MIN_DOT)}

    dz = torch.empty_like(path.c1)
    config = dot_tile("esa_gate_backward", x, channels=c)
    partials, tiles, per_range = ranges_of(x, config, sum(g.numel() for g in grads[-4:]))
    operands = (grad, x, path.c1, path.out, *parameters[-4:], dz, dx, partials)
    sizes = (strides_of(grad), strides_of(x), strides_of(dx), h, w, small_h, small_w, *ratios, tiles, per_range)
    constants = {**maps, "GRAD_VECTOR": vector(grad), **precision, **config}
    launch(gate_backward_kernel, (partials.shape[0],), *operands, *sizes, **constants)
    sum_partials(partials, [*grads[-2:], *grads[-4:-2]])

    dout = torch.empty_like(path.out)
    config = tile("esa_enlarge_backward", x, channels=channels)
    grid = (n * small_h * cdiv(small_w, config["BP"]),)
    launch(enlarge_backward_kernel, grid, dz, dout, h, w, small_h, small_w, *ratios, F=channels, **config)
    kind = {"f": f, "F": channels, "SEPARABLE": separable, "FORM": form(1, x), "NONE": form(0, x), **precision}
    dlow = low_backward(path, dout, parameters, grads, kind)

    config = dot_tile("esa_input_backward", x, channels=c)
    here = [*grads[:2], grads[2]] if separable else grads[:2]
    partials, tiles, per_range = ranges_of(x, config, sum(g.numel() for g in here))
    operands = (x, path.c1, dz, dlow, parameters, parameters[-4], dx, partials, strides_of(x), strides_of(dx))
    constants = {**maps, "SEPARABLE": separable, "PADDING": conv2_padding, **precision, **config}
    launch(input_backward_kernel, (partials.shape[0],), *operands, h, w, h2, w2, tiles, per_range, **constants)
    sum_partials(partials, here)
    if separable:
        assert path.u is not None
        sources = (as_map(path.u), as_map(dlow), weights[3], weights[4])
        grads[3:5] = weight_gradient.depthwise(*sources, stride=2, padding=conv2_padding)
    else:
        sources = (as_map(path.c1), as_map(dlow), weights[2], weights[3])
        grads[2:4] = weight_gradient.dense(*sources, stride=2, padding=conv2_padding)
    return dx, grads
