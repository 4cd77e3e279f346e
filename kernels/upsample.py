"""upsample: 3x3 convolution, pixel shuffle and residual, written where they belong: the shuffle is an address.

y[c, h s + i, w s + j] = conv3x3(x)[(c s + i) s + j, h, w] + residual[c, h s + i, w s + j]
residual = lr[c, h, w] (anchor), bilinear(lr, s) or 0
g[(c s + i) s + j, h, w] = grad[c, h s + i, w s + j];  dx, dw, db as in conv3x3_gelu without activation
d_lr[c, h, w] = sum of grad[c, p, q] over the pixels (p, q) that lr[c, h, w] went to, times its weight there
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels import weight_gradient
from fastsr.kernels.bilinear import bilinear_tap, share
from fastsr.kernels.config import Tile, tile
from fastsr.kernels.conv3x3_gelu import convolve
from fastsr.kernels.launch import MIN_DOT, block, cdiv, dot_precision, launch, strides
from fastsr.kernels.maps import scratch_map
from fastsr.kernels.taps import (
    dot_taps,
    dot_tile,
    inside,
    load_row,
    pack,
    pixels_at,
    store_map,
    strides_of,
    tile_pixels,
    vector,
)
from fastsr.ops._define import empty_map

NONE = tl.constexpr(0)  # residuals, by their codes
ANCHOR = tl.constexpr(1)
BILINEAR = tl.constexpr(2)


@triton.jit
def shuffled(o_k, strides, S: tl.constexpr):
    """Where the channels of a pixel go: offsets from its block's first pixel."""
    o_k = o_k.to(tl.int64)
    return o_k // (S * S) * strides[1] + o_k // S % S * strides[2] + o_k % S * strides[3]


@triton.jit(do_not_specialize=["H", "W"])
def forward_kernel(
    x,
    packed,
    bias,
    lr,
    y,
    x_strides,
    lr_strides,
    y_strides,
    H,
    W,
    C: tl.constexpr,
    CP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    X_VECTOR: tl.constexpr,
    S: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), H, W, BH, BW)
    o_k = tl.program_id(1) * BK + tl.arange(0, BK)
    m_y = inside(o_h, o_w, H, W)[:, None] & (o_k < K)[None, :]
    b_y = dot_taps(
        tl.zeros([BH * BW, BK], tl.float32), x, packed, i_n, o_h, o_w, o_k, x_strides, H, W,
        C, CP, KP, X_VECTOR, BC, STAGES, PRECISION,
    )  # fmt: skip
    b_y += load_row(bias, o_k, K)
    p_lr = lr + (o_k // (S * S)).to(tl.int64)[None, :] * lr_strides[1]
    if RESIDUAL == ANCHOR:
        b_y += tl.load(p_lr + pixels_at(i_n, o_h, o_w, lr_strides, 1)[:, None], mask=m_y, other=0.0).to(tl.float32)
    if RESIDUAL == BILINEAR:
        for i in range(4):  # not unrolled, or all four taps are in registers at once
            o_y, b_h = bilinear_tap(o_h[:, None] * S + (o_k // S % S)[None, :], i // 2, 1.0 / S, H)
            o_x, b_w = bilinear_tap(o_w[:, None] * S + (o_k % S)[None, :], i % 2, 1.0 / S, W)
            b_lr = tl.load(p_lr + pixels_at(i_n, o_y, o_x, lr_strides, 1), mask=m_y, other=0.0)
            b_y += b_h * b_w * b_lr.to(tl.float32)
    p_y = y + pixels_at(i_n, o_h * S, o_w * S, y_strides, 1)[:, None] + shuffled(o_k, y_strides, S)[None, :]
    tl.store(p_y, b_y.to(y.dtype.element_ty), mask=m_y)


@triton.jit(do_not_specialize=["H", "W"])
def unshuffle_kernel(
    grad,
    g,
    grad_strides,
    g_strides,
    H,
    W,
    K: tl.constexpr,
    GK: tl.constexpr,
    G_VECTOR: tl.constexpr,
    S: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BK: tl.constexpr,
):
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), H, W, BH, BW)
    o_k = tl.program_id(1) * BK + tl.arange(0, BK)
    m_p = inside(o_h, o_w, H, W)
    p_grad = grad + pixels_at(i_n, o_h * S, o_w * S, grad_strides, 1)[:, None] + shuffled(o_k, grad_strides, S)[None, :]
    b_g = tl.load(p_grad, mask=m_p[:, None] & (o_k < K)[None, :], other=0.0)
    store_map(g, pixels_at(i_n, o_h, o_w, g_strides, G_VECTOR), m_p, o_k, GK, g_strides, b_g)


@triton.jit(do_not_specialize=["H", "W"])
def lr_gradient_kernel(
    grad,
    d_lr,
    grad_strides,
    d_lr_strides,
    H,
    W,
    C: tl.constexpr,
    S: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
):
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), H, W, BH, BW)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    m_p = inside(o_h, o_w, H, W)
    b_sum = tl.zeros([BH * BW, BC], tl.float32)
    # An LR pixel reaches its own block, and by bilinear enlargement half of each neighbour's.
    BEFORE: tl.constexpr = S // 2 if RESIDUAL == BILINEAR else 0
    SPAN: tl.constexpr = 2 * S if RESIDUAL == BILINEAR else S
    for i in range(SPAN * SPAN):
        o_y = o_h * S + (i // SPAN - BEFORE)
        o_x = o_w * S + (i % SPAN - BEFORE)
        m_y = m_p & inside(o_y, o_x, H * S, W * S)
        p_grad = grad + pixels_at(i_n, o_y, o_x, grad_strides, 1)[:, None]
        p_grad += (o_c.to(tl.int64) * grad_strides[1])[None, :]
        b_g = tl.load(p_grad, mask=m_y[:, None] & (o_c < C)[None, :], other=0.0).to(tl.float32)
        if RESIDUAL == BILINEAR:
            b_g *= (share(o_y, o_h, 1.0 / S, H) * share(o_x, o_w, 1.0 / S, W))[:, None]
        b_sum += b_g
    store_map(d_lr, pixels_at(i_n, o_h, o_w, d_lr_strides, 1), m_p, o_c, C, d_lr_strides, b_sum)


def tiles_of(x: Tensor, config: Tile) -> int:
    return x.shape[0] * cdiv(x.shape[2], config["BH"]) * cdiv(x.shape[3], config["BW"])


def upsample(x: Tensor, weight: Tensor, bias: Tensor, lr: Tensor | None, scale: int, residual: int) -> Tensor:
    (_, c, h, w), k = x.shape, weight.shape[0]
    y = empty_map(x, k // (scale * scale), h * scale, w * scale)
    if y.numel() == 0:
        return y
    config = dot_tile("upsample", x, channels=c, out=k)
    config |= {"BC": block(c, MIN_DOT, config["BC"]), "BK": block(k, MIN_DOT, config["BK"])}
    packed = pack(weight, x.dtype, config["BC"], config["BK"])
    image = y if lr is None else lr
    operands = (x, packed, bias.contiguous(), image, y, strides_of(x), strides(image), strides(y), h, w)
    sizes = {"C": c, "CP": packed.shape[1], "K": k, "KP": packed.shape[2], "S": scale, "RESIDUAL": residual}
    grid = (tiles_of(x, config), packed.shape[2] // config["BK"])
    launch(forward_kernel, grid, *operands, **sizes, X_VECTOR=vector(x), PRECISION=dot_precision(x), **config)
    return y


def upsample_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor | None,
    scale: int,
    residual: int,
    lr_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (_, c, h, w), k = x.shape, weight.shape[0]
    dx = empty_map(x, c)
    wanted = lr is not None and lr_gradient and residual != NONE.value
    d_lr = empty_map(lr, lr.shape[1]) if wanted and lr is not None else x.new_empty((0,))
    if x.numel() == 0:
        return dx, weight.new_zeros(weight.shape), bias.new_zeros(bias.shape), d_lr
    g = scratch_map(x, k)
    config = tile("upsample_unshuffle", x, channels=k)
    config["BK"] = block(g.shape[1], most=config["BK"])
    sizes = {"K": k, "GK": g.shape[1], "G_VECTOR": vector(g), "S": scale}
    grid = (tiles_of(x, config), cdiv(g.shape[1], config["BK"]))
    launch(unshuffle_kernel, grid, grad, g, strides(grad), strides_of(g), h, w, **sizes, **config)
    convolve(g, weight, None, None, dx, transposed=True)
    if wanted:
        config = tile("upsample_lr_gradient", x, channels=d_lr.shape[1])
        config["BC"] = block(d_lr.shape[1], most=config["BC"])
        sizes = {"C": d_lr.shape[1], "S": scale, "RESIDUAL": residual}
        grid = (tiles_of(x, config), cdiv(d_lr.shape[1], config["BC"]))
        launch(lr_gradient_kernel, grid, grad, d_lr, strides(grad), strides(d_lr), h, w, **sizes, **config)
    return dx, *weight_gradient.dense(x, g, weight, bias, padding=1), d_lr
