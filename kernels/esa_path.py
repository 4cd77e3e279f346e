"""The side path of esa, on maps of f channels padded to F, for the forward and again for the backward.

c1 = conv1(x);  low = conv2(c1), stride 2                                     # reduce_kernel, in one pass over x
m = max_pool(low, 7, stride 3);  out = conv3(m)                               # low_kernel, plain form
u1 = pw_max m;  q1 = dw_max(u1);  u2 = pw3 GELU(q1);  q2 = dw3(u2);  u3 = pw3_ GELU(q2);  out = dw3_(u3)    # blueprint

c1 has the dtype of x; the small maps are float32. A program of low_kernel does all of it for a tile of the small map:
every step for the tile and the border that the later ones need, through a piece of memory of its own. What is stored in
one step is loaded by other threads of the program in the next: hence the barriers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.activation import activate, form
from fastsr.kernels.bilinear import bilinear_tap
from fastsr.kernels.config import tile
from fastsr.kernels.launch import MIN_DOT, block, cdiv, dot_precision, launch
from fastsr.kernels.taps import dot_tile, inside, load_map, load_row, pixels_at, strides_of, tile_pixels, vector

POOL = tl.constexpr(7)
POOL_STEP = tl.constexpr(3)


@triton.jit
def cells(i_n, o_h, o_w, H, W, F: tl.constexpr):
    """Offsets of the pixels of a dense [N, H, W, F] map."""
    return ((i_n.to(tl.int64) * H + o_h) * W + o_w) * F


@triton.jit
def load_cells(p_map, o_p, m_p, F: tl.constexpr):
    return tl.load(p_map + o_p[:, None] + tl.arange(0, F)[None, :], mask=m_p[:, None], other=0.0)


@triton.jit
def store_cells(p_map, o_p, m_p, F: tl.constexpr, b_value):
    p_out = p_map + o_p[:, None] + tl.arange(0, F)[None, :]
    tl.store(p_out, b_value.to(p_map.dtype.element_ty), mask=m_p[:, None])


@triton.jit
def load_matrix(
    p, o_r, o_q, R: tl.constexpr, Q: tl.constexpr, STRIDE_R: tl.constexpr, STRIDE_Q: tl.constexpr, dtype: tl.constexpr
):
    """A matrix [R, Q] in any strides as [rows, columns] in `dtype`, 0 beyond its extents."""
    p_in = p + o_r[:, None] * STRIDE_R + o_q[None, :] * STRIDE_Q
    return tl.load(p_in, mask=(o_r < R)[:, None] & (o_q < Q)[None, :], other=0.0).to(dtype)


@triton.jit
def load_filter(p, i_t, o_f, f: tl.constexpr):
    """Tap `i_t` of a depthwise 3x3 filter as [1, F]."""
    return tl.load(p + o_f * 9 + i_t, mask=o_f < f, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["H", "W", "H2", "W2"])
def reduce_kernel(
    x,
    weights,
    c1,
    u,
    low,
    x_strides,
    H,
    W,
    H2,
    W2,
    C: tl.constexpr,
    X_VECTOR: tl.constexpr,
    f: tl.constexpr,
    F: tl.constexpr,
    SEPARABLE: tl.constexpr,
    PADDING: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A position (i, j) is a pixel of `low` and owns the pixels 2 i - PADDING + {0, 1} of c1 and u, likewise in j."""
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), tl.cdiv(H + PADDING, 2), tl.cdiv(W + PADDING, 2), BH, BW)
    o_c = tl.arange(0, BC)
    o_f = tl.arange(0, F)
    dtype = c1.dtype.element_ty
    b_w1 = load_matrix(weights[0], o_c, o_f, C, f, 1, C, dtype)
    b_low = tl.zeros([BH * BW, F], tl.float32)
    for i in range(3):
        for j in tl.static_range(3):
            o_y = 2 * o_h + (i - PADDING)
            o_x = 2 * o_w + (j - PADDING)
            m_p = inside(o_y, o_x, H, W)
            b_x = load_map(x, pixels_at(i_n, o_y, o_x, x_strides, X_VECTOR), m_p, o_c, C, x_strides)
            b_c1 = tl.dot(b_x, b_w1, input_precision=PRECISION) + load_row(weights[1], o_f, f)
            b_c1 = tl.where(m_p[:, None], b_c1, 0.0).to(dtype)
            o_p = cells(i_n, o_y, o_x, H, W, F)
            m_own = m_p & (o_y < 2 * o_h + 2 - PADDING)
            if j < 2:
                store_cells(c1, o_p, m_own, F, b_c1)
            if SEPARABLE:
                b_u = tl.dot(b_c1, load_matrix(weights[2], o_f, o_f, f, f, 1, f, dtype), input_precision=PRECISION)
                if u is not None and j < 2:
                    store_cells(u, o_p, m_own, F, b_u)
                b_low += b_u * load_filter(weights[3], 3 * i + j, o_f, f)
            else:
                b_w2 = load_matrix(weights[2] + (3 * i + j), o_f, o_f, f, f, 9, 9 * f, dtype)
                b_low = tl.dot(b_c1, b_w2, b_low, input_precision=PRECISION)
    b_low += load_row(weights[4 if SEPARABLE else 3], o_f, f)
    store_cells(low, cells(i_n, o_h, o_w, H2, W2, F), (o_h < H2) & (o_w < W2), F, b_low)


@triton.jit
def max_pool(p_low, i_n, o_h, o_w, m_p, H2, W2, F: tl.constexpr):
    """The maximum of each window and where in it: the first, or the last NaN, as PyTorch has it."""
    b_max = tl.full([o_h.shape[0], F], float("-inf"), tl.float32)
    b_index = tl.zeros([o_h.shape[0], F], tl.int32)
    for i in range(POOL):
        for j in tl.static_range(POOL):
            o_p = cells(i_n, o_h * POOL_STEP + i, o_w * POOL_STEP + j, H2, W2, F)
            b_low = load_cells(p_low, o_p, m_p, F)
            m_new = (b_low > b_max) | (b_low != b_low)
            b_max = tl.where(m_new, b_low, b_max)
            b_index = tl.where(m_new, i * POOL + j, b_index)
    return b_max, b_index


@triton.jit
def region(i, o_p, top, left, width, count):
    """Row and column of positions i + o_p of a region, and which of them are in it."""
    o_p = i + o_p
    return top + o_p // width, left + o_p % width, o_p < count


@triton.jit
def filter_step(
    p_from, p_to, q, u, bias, filter, pw, i_n, i_h, i_w, border, H, W,
    f: tl.constexpr, F: tl.constexpr, FORM: tl.constexpr, SIZE: tl.constexpr, BP: tl.constexpr,
    PRECISION: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """q = dw(from) + bias and u = pw act(q) for a tile at (i_h, i_w) with `border`; `from` has one more of it."""
    o_f = tl.arange(0, F)
    top, left = tl.maximum(i_h - border, 0), tl.maximum(i_w - border, 0)
    width = tl.minimum(i_w + SIZE + border, W) - left
    count = (tl.minimum(i_h + SIZE + border, H) - top) * width
    from_top, from_left = tl.maximum(i_h - border - 1, 0), tl.maximum(i_w - border - 1, 0)
    from_width = tl.minimum(i_w + SIZE + border + 1, W) - from_left
    for i in range(0, count, BP):
        o_h, o_w, m_p = region(i, tl.arange(0, BP), top, left, width, count)
        b_q = tl.zeros([BP, F], tl.float32) + load_row(bias, o_f, f)
        for t in range(9):
            o_y, o_x = o_h + (t // 3 - 1), o_w + (t % 3 - 1)
            o_p = ((o_y - from_top) * from_width + (o_x - from_left)) * F
            b_q += load_cells(p_from, o_p, m_p & inside(o_y, o_x, H, W), F) * load_filter(filter, t, o_f, f)
        m_own = m_p & inside(o_h - i_h, o_w - i_w, SIZE, SIZE)
        o_own = cells(i_n, o_h, o_w, H, W, F)
        if q is not None:
            store_cells(q, o_own, m_own, F, b_q)
        if pw is not None:
            b_w = load_matrix(pw, o_f, o_f, f, f, 1, f, dtype)
            b_u = tl.dot(activate(b_q, FORM).to(dtype), b_w, input_precision=PRECISION)
            store_cells(p_to, (i + tl.arange(0, BP)) * F, m_p, F, b_u)
            if u is not None:
                store_cells(u, o_own, m_own, F, b_u)


@triton.jit(do_not_specialize=["H2", "W2", "H", "W"])
def low_kernel(
    low,
    weights,
    out,
    scratch,
    index,  # from here on kept for the backward, or None
    m,
    u1,
    q1,
    u2,
    q2,
    u3,
    H2,
    W2,
    H,
    W,
    dtype: tl.constexpr,
    f: tl.constexpr,
    F: tl.constexpr,
    SEPARABLE: tl.constexpr,
    FORM: tl.constexpr,
    SIZE: tl.constexpr,
    BP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    BORDER: tl.constexpr = 3 if SEPARABLE else 1
    PIECE: tl.constexpr = (SIZE + 2 * BORDER) * (SIZE + 2 * BORDER) * F
    tiles_w = tl.cdiv(W, SIZE)
    tiles = tl.cdiv(H, SIZE) * tiles_w
    i_n = tl.program_id(0) // tiles
    i_h = tl.program_id(0) % tiles // tiles_w * SIZE
    i_w = tl.program_id(0) % tiles_w * SIZE
    o_f = tl.arange(0, F)
    p_a = scratch + tl.program_id(0).to(tl.int64) * (2 * PIECE)
    p_b = p_a + PIECE
    top, left = tl.maximum(i_h - BORDER, 0), tl.maximum(i_w - BORDER, 0)
    width = tl.minimum(i_w + SIZE + BORDER, W) - left
    count = (tl.minimum(i_h + SIZE + BORDER, H) - top) * width
    for i in range(0, count, BP):
        o_h, o_w, m_p = region(i, tl.arange(0, BP), top, left, width, count)
        b_m, b_index = max_pool(low, i_n, o_h, o_w, m_p, H2, W2, F)
        m_own = m_p & inside(o_h - i_h, o_w - i_w, SIZE, SIZE)
        o_own = cells(i_n, o_h, o_w, H, W, F)
        if index is not None:
            store_cells(index, o_own, m_own, F, b_index)
            store_cells(m, o_own, m_own, F, b_m)
        if SEPARABLE:
            b_w = load_matrix(weights[5], o_f, o_f, f, f, 1, f, dtype)
            b_m = tl.dot(b_m.to(dtype), b_w, input_precision=PRECISION)
            if u1 is not None:
                store_cells(u1, o_own, m_own, F, b_m)
        store_cells(p_a, (i + tl.arange(0, BP)) * F, m_p, F, b_m)
    tl.debug_barrier()
    if SEPARABLE:
        filter_step(
            p_a, p_b, q1, u2, weights[7], weights[6], weights[8], i_n, i_h, i_w, 2, H, W,
            f, F, FORM, SIZE, BP, PRECISION, dtype,
        )  # fmt: skip
        tl.debug_barrier()
        filter_step(
            p_b, p_a, q2, u3, weights[10], weights[9], weights[11], i_n, i_h, i_w, 1, H, W,
            f, F, FORM, SIZE, BP, PRECISION, dtype,
        )  # fmt: skip
        tl.debug_barrier()
        filter_step(
            p_a, p_b, out, None, weights[13], weights[12], None, i_n, i_h, i_w, 0, H, W,
            f, F, FORM, SIZE, BP, PRECISION, dtype,
        )  # fmt: skip
    else:
        own_width = tl.minimum(i_w + SIZE, W) - i_w
        own_count = (tl.minimum(i_h + SIZE, H) - i_h) * own_width
        for i in range(0, own_count, BP):
            o_h, o_w, m_p = region(i, tl.arange(0, BP), i_h, i_w, own_width, own_count)
            b_out = tl.zeros([BP, F], tl.float32) + load_row(weights[5], o_f, f)
            for t in range(9):
                o_y, o_x = o_h + (t // 3 - 1), o_w + (t % 3 - 1)
                o_p = ((o_y - top) * width + (o_x - left)) * F
                b_m = load_cells(p_a, o_p, m_p & inside(o_y, o_x, H, W), F).to(dtype)
                b_w = load_matrix(weights[4] + t, o_f, o_f, f, f, 9, 9 * f, dtype)
                b_out = tl.dot(b_m, b_w, b_out, input_precision=PRECISION)
            store_cells(out, cells(i_n, o_h, o_w, H, W, F), m_p, F, b_out)


@triton.jit
def gate_input(
    c1, out, conv_f, conv_f_bias, i_n, o_h, o_w, m_p, H, W, SMALL_H, SMALL_W, ratio_h, ratio_w,
    f: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """c1 and z = bilinear(out) + conv_f(c1) of a tile's pixels."""
    o_f = tl.arange(0, F)
    dtype = c1.dtype.element_ty
    b_c1 = load_cells(c1, cells(i_n, o_h, o_w, H, W, F), m_p, F)
    b_w = load_matrix(conv_f, o_f, o_f, f, f, 1, f, dtype)
    b_z = tl.dot(b_c1, b_w, input_precision=PRECISION) + load_row(conv_f_bias, o_f, f)
    for i in tl.static_range(2):
        o_y, b_h = bilinear_tap(o_h, i, ratio_h, SMALL_H)
        for j in tl.static_range(2):
            o_x, b_v = bilinear_tap(o_w, j, ratio_w, SMALL_W)
            b_out = load_cells(out, cells(i_n, o_y, o_x, SMALL_H, SMALL_W, F), m_p, F)
            b_z += (b_h * b_v)[:, None] * b_out
    return b_c1, b_z


TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@dataclass(frozen=True)
class Path:
    """The maps of the side path, [N, rows, columns, F] in memory; all but c1 and out are kept for the backward only."""

    c1: Tensor
    low: Tensor
    out: Tensor
    u: Tensor | None = None  # conv2's pointwise product
    index: Tensor | None = None  # of the maximum in its window
    m: Tensor | None = None
    small: tuple[Tensor | None, ...] = (None,) * 5  # u1, q1, u2, q2, u3


def run_path(x: Tensor, weights: tuple[Tensor, ...], padding: int, *, keep: bool) -> Path:
    """Runs both kernels; `weights` are the operator's, contiguous."""
    (n, c, height, width), f = x.shape, weights[0].shape[0]
    separable, channels = len(weights) == 18, block(f, MIN_DOT)
    h2, w2 = ((size + 2 * padding - 3) // 2 + 1 for size in (height, width))
    h, w = ((size - POOL.value) // POOL_STEP.value + 1 for size in (h2, w2))

    def small(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(n, rows, columns, channels, dtype=dtype, device=x.device)

    c1, low, out = small(height, width, x.dtype), small(h2, w2), small(h, w)
    u = small(height, width, x.dtype) if keep and separable else None
    index, m = (small(h, w, torch.int32), small(h, w)) if keep else (None, None)
    saved = tuple(small(h, w) for _ in range(5)) if keep and separable else (None,) * 5

    config = dot_tile("esa_reduce", x, channels=c)
    kind = {"f": f, "F": channels, "SEPARABLE": separable, "PRECISION": dot_precision(x)}
    grid = (n * cdiv(cdiv(height + padding, 2), config["BH"]) * cdiv(cdiv(width + padding, 2), config["BW"]),)
    operands = (x, weights, c1, u, low, strides_of(x), height, width, h2, w2)
    sizes = {"C": c, "X_VECTOR": vector(x), "PADDING": padding, "BC": block(c, MIN_DOT)}
    launch(reduce_kernel, grid, *operands, **sizes, **kind, **config)

    config = tile("esa_low", x, channels=channels)
    border = 3 if separable else 1
    programs = n * cdiv(h, config["SIZE"]) * cdiv(w, config["SIZE"])
    scratch = torch.empty(
        programs, 2, (config["SIZE"] + 2 * border) ** 2, channels, dtype=torch.float32, device=x.device
    )
    operands = (low, weights, out, scratch, index, m, *saved, h2, w2, h, w)
    kind |= {"FORM": form(1, x), "dtype": TRITON_DTYPES[x.dtype]}
    launch(low_kernel, (programs,), *operands, **kind, **config)
    return Path(c1, low, out, u, index, m, saved)
