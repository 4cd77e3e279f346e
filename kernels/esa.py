"""esa: enhanced spatial attention, in the plain form (10 weights) and the blueprint form (18).

c1, out = the side path (esa_path.py);  z = bilinear(out) + conv_f(c1);  y = x sigmoid(conv4(z))

Three kernels: one pass over x for c1 and the strided convolution, the small maps, and this file's pass over x and c1.
The backward is in esa_backward.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.esa_backward import esa_backward as esa_backward
from fastsr.kernels.esa_path import gate_input, load_matrix, run_path
from fastsr.kernels.launch import MIN_DOT, block, cdiv, dot_precision, launch, vectors
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


@triton.jit
def gated(
    x, c1, out, conv_f, conv_f_bias, conv4, conv4_bias, i_n, o_h, o_w, m_p, o_c, x_strides, H, W, SMALL_H, SMALL_W,
    ratio_h, ratio_w, C: tl.constexpr, X_VECTOR: tl.constexpr, f: tl.constexpr, F: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """x sigmoid(conv4(z)) of a tile's pixels."""
    dtype = c1.dtype.element_ty
    _, b_z = gate_input(
        c1, out, conv_f, conv_f_bias, i_n, o_h, o_w, m_p, H, W, SMALL_H, SMALL_W, ratio_h, ratio_w, f, F, PRECISION
    )
    b_w = load_matrix(conv4, tl.arange(0, F), o_c, f, C, 1, f, dtype)
    b_gate = tl.dot(b_z.to(dtype), b_w, input_precision=PRECISION) + load_row(conv4_bias, o_c, C)
    b_x = load_map(x, pixels_at(i_n, o_h, o_w, x_strides, X_VECTOR), m_p, o_c, C, x_strides).to(tl.float32)
    return b_x * tl.sigmoid(b_gate)


@triton.jit(do_not_specialize=["H", "W", "SMALL_H", "SMALL_W"])
def gate_kernel(
    x,
    c1,
    out,
    conv_f,
    conv_f_bias,
    conv4,
    conv4_bias,
    y,
    x_strides,
    y_strides,
    H,
    W,
    SMALL_H,
    SMALL_W,
    ratio_h,
    ratio_w,
    C: tl.constexpr,
    X_VECTOR: tl.constexpr,
    Y_VECTOR: tl.constexpr,
    f: tl.constexpr,
    F: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), H, W, BH, BW)
    m_p = inside(o_h, o_w, H, W)
    o_c = tl.arange(0, BC)
    b_y = gated(
        x, c1, out, conv_f, conv_f_bias, conv4, conv4_bias, i_n, o_h, o_w, m_p, o_c, x_strides, H, W, SMALL_H, SMALL_W,
        ratio_h, ratio_w, C, X_VECTOR, f, F, PRECISION,
    )  # fmt: skip
    store_map(y, pixels_at(i_n, o_h, o_w, y_strides, Y_VECTOR), m_p, o_c, C, y_strides, b_y)


def esa(x: Tensor, weights: list[Tensor], conv2_padding: int) -> Tensor:
    n, c, h, w = x.shape
    y = empty_map(x, c)
    if y.numel() == 0:
        return y
    parameters = tuple(vectors(weights))
    f = weights[0].shape[0]
    path = run_path(x, parameters, conv2_padding, keep=False)
    config = dot_tile("esa_gate", x, channels=c)
    small_h, small_w = path.out.shape[1:3]
    sizes = {"C": c, "X_VECTOR": vector(x), "Y_VECTOR": vector(y), "f": f, "F": block(f, MIN_DOT)}
    grid = (n * cdiv(h, config["BH"]) * cdiv(w, config["BW"]),)
    operands = (x, path.c1, path.out, *parameters[-4:], y, strides_of(x), strides_of(y), h, w, small_h, small_w)
    ratios = (small_h / h, small_w / w)
    kind = {"BC": block(c, MIN_DOT), "PRECISION": dot_precision(x)}
    launch(gate_kernel, grid, *operands, *ratios, **sizes, **kind, **config)
    return y
