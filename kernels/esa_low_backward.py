"""The backward of esa's small maps (esa_path.py): from the gradient of the last one to that of the first.

per convolution q = dw(u) + bias, u = pw v (plain: q = conv3(v) + bias):
dq = d act'(q);  du = dw^T(dq);  dv = pw^T du;  dpw = du v^T;  ddw[c, t] = sum_p u[p + t, c] dq[p, c]
dlow: the gradient of each window goes to its maximum, gathered
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.activation import activate, derivative
from fastsr.kernels.config import tile
from fastsr.kernels.esa_path import (
    POOL,
    POOL_STEP,
    TRITON_DTYPES,
    Path,
    cells,
    load_cells,
    load_filter,
    load_matrix,
    region,
    store_cells,
)
from fastsr.kernels.launch import cdiv, launch
from fastsr.kernels.partials import empty_partials, sum_partials
from fastsr.kernels.taps import inside, tile_pixels


@triton.jit
def store_matrix(p_sums, b_sum, f: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr):
    """A gradient [rows, columns] of which [f, C] are meant, into a weight [f, C, taps]."""
    o_r = tl.arange(0, b_sum.shape[0])
    o_q = tl.arange(0, b_sum.shape[1])
    p_out = p_sums + (o_r[:, None] * C + o_q[None, :]) * TAPS
    tl.store(p_out, b_sum, mask=(o_r < f)[:, None] & (o_q < C)[None, :])


@triton.jit
def store_sum(p_sums, b_sum, f: tl.constexpr, STRIDE: tl.constexpr):
    """The sum over the rows of [rows, channels], of which f are meant."""
    o_f = tl.arange(0, b_sum.shape[1])
    tl.store(p_sums + o_f * STRIDE, tl.sum(b_sum, 0), mask=o_f < f)


@triton.jit
def filter_backward(
    dq, q, u, before, d_before, filter, pw, p_sums, i_n, H, W, f: tl.constexpr, F: tl.constexpr,
    FORM: tl.constexpr, BEFORE_FORM: tl.constexpr, BP: tl.constexpr, PRECISION: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """One blueprint convolution: q = dw(u) + bias, u = pw act(before), of a whole image.

    dq holds the gradient of act(q), or with q None of q itself. The sums become those of pw, dw and the bias.
    """
    o_f = tl.arange(0, F)
    b_db = tl.zeros([BP, F], tl.float32)
    for i in range(0, H * W, BP):
        o_h, o_w, m_p = region(i, tl.arange(0, BP), 0, 0, W, H * W)
        o_p = cells(i_n, o_h, o_w, H, W, F)
        b_dq = load_cells(dq, o_p, m_p, F)
        if q is not None:
            b_dq *= derivative(load_cells(q, o_p, m_p, F), FORM)
            store_cells(dq, o_p, m_p, F, b_dq)
        b_db += b_dq
    store_sum(p_sums + f * f + 9 * f, b_db, f, 1)
    tl.debug_barrier()
    b_dpw = tl.zeros([F, F], tl.float32)
    for i in range(0, H * W, BP):
        o_h, o_w, m_p = region(i, tl.arange(0, BP), 0, 0, W, H * W)
        b_du = tl.zeros([BP, F], tl.float32)
        for t in range(9):
            o_y, o_x = o_h - (t // 3 - 1), o_w - (t % 3 - 1)
            b_dq = load_cells(dq, cells(i_n, o_y, o_x, H, W, F), m_p & inside(o_y, o_x, H, W), F)
            b_du += b_dq * load_filter(filter, t, o_f, f)
        b_du = b_du.to(dtype)
        o_p = cells(i_n, o_h, o_w, H, W, F)
        b_before = activate(load_cells(before, o_p, m_p, F), BEFORE_FORM).to(dtype)
        b_dpw = tl.dot(tl.trans(b_du), b_before, b_dpw, input_precision=PRECISION)
        b_d = tl.dot(b_du, load_matrix(pw, o_f, o_f, f, f, f, 1, dtype), input_precision=PRECISION)
        store_cells(d_before, o_p, m_p, F, b_d)
    store_matrix(p_sums, b_dpw, f, f, 1)
    for t in range(9):
        b_dw = tl.zeros([BP, F], tl.float32)
        for i in range(0, H * W, BP):
            o_h, o_w, m_p = region(i, tl.arange(0, BP), 0, 0, W, H * W)
            b_dq = load_cells(dq, cells(i_n, o_h, o_w, H, W, F), m_p, F)
            o_y, o_x = o_h + (t // 3 - 1), o_w + (t % 3 - 1)
            b_dw += b_dq * load_cells(u, cells(i_n, o_y, o_x, H, W, F), m_p & inside(o_y, o_x, H, W), F)
        store_sum(p_sums + f * f + t, b_dw, f, 9)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["H", "W"])
def low_backward_kernel(
    dout,
    spare,
    m,
    u1,
    q1,
    u2,
    q2,
    u3,
    weights,
    partials,
    H,
    W,
    dtype: tl.constexpr,
    f: tl.constexpr,
    F: tl.constexpr,
    SEPARABLE: tl.constexpr,
    FORM: tl.constexpr,
    NONE: tl.constexpr,
    BP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program does one image, forth and back between dout and spare: dm ends up in spare."""
    i_n = tl.program_id(0)
    o_f = tl.arange(0, F)
    STEP: tl.constexpr = f * f + 10 * f if SEPARABLE else 9 * f * f + f
    p_sums = partials + i_n.to(tl.int64) * (3 * STEP if SEPARABLE else STEP)
    if SEPARABLE:
        filter_backward(
            dout, None, u3, q2, spare, weights[12], weights[11], p_sums + 2 * STEP, i_n, H, W, f, F,
            NONE, FORM, BP, PRECISION, dtype,
        )  # fmt: skip
        filter_backward(
            spare, q2, u2, q1, dout, weights[9], weights[8], p_sums + STEP, i_n, H, W, f, F,
            FORM, FORM, BP, PRECISION, dtype,
        )  # fmt: skip
        filter_backward(
            dout, q1, u1, m, spare, weights[6], weights[5], p_sums, i_n, H, W, f, F,
            FORM, NONE, BP, PRECISION, dtype,
        )  # fmt: skip
    else:
        b_db = tl.zeros([BP, F], tl.float32)
        for i in range(0, H * W, BP):
            o_h, o_w, m_p = region(i, tl.arange(0, BP), 0, 0, W, H * W)
            o_p = cells(i_n, o_h, o_w, H, W, F)
            b_db += load_cells(dout, o_p, m_p, F)
            b_dm = tl.zeros([BP, F], tl.float32)
            for t in range(9):
                o_y, o_x = o_h - (t // 3 - 1), o_w - (t % 3 - 1)
                b_dout = load_cells(dout, cells(i_n, o_y, o_x, H, W, F), m_p & inside(o_y, o_x, H, W), F).to(dtype)
                b_w = load_matrix(weights[4] + t, o_f, o_f, f, f, 9 * f, 9, dtype)
                b_dm = tl.dot(b_dout, b_w, b_dm, input_precision=PRECISION)
            store_cells(spare, o_p, m_p, F, b_dm)
        store_sum(p_sums + 9 * f * f, b_db, f, 1)
        for t in range(9):
            b_dw = tl.zeros([F, F], tl.float32)
            for i in range(0, H * W, BP):
                o_h, o_w, m_p = region(i, tl.arange(0, BP), 0, 0, W, H * W)
                b_dout = load_cells(dout, cells(i_n, o_h, o_w, H, W, F), m_p, F).to(dtype)
                o_y, o_x = o_h + (t // 3 - 1), o_w + (t % 3 - 1)
                b_m = load_cells(m, cells(i_n, o_y, o_x, H, W, F), m_p & inside(o_y, o_x, H, W), F).to(dtype)
                b_dw = tl.dot(tl.trans(b_dout), b_m, b_dw, input_precision=PRECISION)
            store_matrix(p_sums + t, b_dw, f, f, 9)


@triton.jit(do_not_specialize=["H", "W", "SMALL_H", "SMALL_W"])
def pool_backward_kernel(dm, index, dlow, H, W, SMALL_H, SMALL_W, F: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """A pixel gathers from the windows over it whose maximum it is, at most three in each direction."""
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), H, W, BH, BW)
    b_sum = tl.zeros([BH * BW, F], tl.float32)
    for i in range(3):
        for j in tl.static_range(3):
            o_y, o_x = o_h // POOL_STEP - i, o_w // POOL_STEP - j
            i_y, i_x = o_h - o_y * POOL_STEP, o_w - o_x * POOL_STEP
            m_p = inside(o_y, o_x, SMALL_H, SMALL_W) & (i_y < POOL) & (i_x < POOL)
            o_p = cells(i_n, o_y, o_x, SMALL_H, SMALL_W, F)
            m_here = load_cells(index, o_p, m_p, F) == (i_y * POOL + i_x)[:, None]
            b_sum += tl.where(m_here, load_cells(dm, o_p, m_p, F), 0.0)
    store_cells(dlow, cells(i_n, o_h, o_w, H, W, F), inside(o_h, o_w, H, W), F, b_sum)


def low_backward(
    path: Path, dout: Tensor, weights: tuple[Tensor, ...], grads: list[Tensor], kind: dict[str, int]
) -> Tensor:
    """The gradient of conv2's result, in the dtype of c1; fills the small convolutions' gradients."""
    assert path.index is not None
    n, h, w, channels = dout.shape
    separable = bool(kind["SEPARABLE"])
    small = grads[5:14] if separable else grads[4:6]
    partials = empty_partials(dout, n, sum(g.numel() for g in small))
    dm = torch.empty_like(dout)
    config = tile("esa_low_backward", dout, channels=channels)
    operands = (dout, dm, path.m, *path.small, weights, partials, h, w)
    dtype = TRITON_DTYPES[path.c1.dtype]
    launch(low_backward_kernel, (n,), *operands, dtype=dtype, **kind, **config)
    sum_partials(partials, small)
    h2, w2 = path.low.shape[1:3]
    dlow = torch.empty_like(path.low, dtype=path.c1.dtype)
    config = tile("esa_pool_backward", dout, channels=channels)
    grid = (n * cdiv(h2, config["BH"]) * cdiv(w2, config["BW"]),)
    launch(pool_backward_kernel, grid, dm, path.index, dlow, h2, w2, h, w, F=channels, **config)
    return dlow
