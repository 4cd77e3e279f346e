"""conv3x3_gelu: dense 3x3 convolution as an implicit matrix product, with its activation and shortcut.

pre = conv3x3(x, w) + b;  y = act(pre) + shortcut
g = grad act'(pre)                                         # pre is computed again
dx = conv3x3(g, w turned by 180 degrees and transposed)
dw[k, c, t] = sum_p x[p + t, c] g[p, k];  db[k] = sum_p g[p, k]
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels import weight_gradient
from fastsr.kernels.activation import activate, derivative, form
from fastsr.kernels.launch import MIN_DOT, block, cdiv, dot_precision, launch
from fastsr.kernels.maps import scratch_map
from fastsr.kernels.taps import (
    dot_taps,
    dot_tile,
    inside,
    load_map,
    load_row,
    pack,
    pixels_at,
    store_map,
    strides_of,
    tile_pixels,
    vector,
)
from fastsr.ops._define import empty_map


@triton.jit(do_not_specialize=["H", "W"])
def conv3x3_kernel(
    x,
    packed,
    bias,
    other,
    y,
    x_strides,
    other_strides,
    y_strides,
    H,
    W,
    C: tl.constexpr,
    CP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    YK: tl.constexpr,
    X_VECTOR: tl.constexpr,
    OTHER_VECTOR: tl.constexpr,
    Y_VECTOR: tl.constexpr,
    FORM: tl.constexpr,
    GRADIENT: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = act(pre) + other, or with GRADIENT other * act'(pre). y has YK channels: those from K on become 0."""
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), H, W, BH, BW)
    m_p = inside(o_h, o_w, H, W)
    o_k = tl.program_id(1) * BK + tl.arange(0, BK)
    b_y = dot_taps(
        tl.zeros([BH * BW, BK], tl.float32), x, packed, i_n, o_h, o_w, o_k, x_strides, H, W,
        C, CP, KP, X_VECTOR, BC, STAGES, PRECISION,
    )  # fmt: skip
    if bias is not None:
        b_y += load_row(bias, o_k, K)
    if other is not None:
        o_other = pixels_at(i_n, o_h, o_w, other_strides, OTHER_VECTOR)
        b_other = load_map(other, o_other, m_p, o_k, K, other_strides).to(tl.float32)
        b_y = b_other * derivative(b_y, FORM) if GRADIENT else activate(b_y, FORM) + b_other
    else:
        b_y = activate(b_y, FORM)
    store_map(y, pixels_at(i_n, o_h, o_w, y_strides, Y_VECTOR), m_p, o_k, YK, y_strides, b_y)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    y: Tensor,
    activation: int = 0,
    *,
    gradient: bool = False,
    transposed: bool = False,
) -> Tensor:
    """Fill `y` by the kernel, with `weight` [K, C, 3, 3] or the adjoint of its convolution; returns `y`."""
    (n, c, h, w), k = x.shape, weight.shape[1 if transposed else 0]
    config = dot_tile("conv3x3", x, channels=c, out=k)
    config |= {"BC": block(c, MIN_DOT, config["BC"]), "BK": block(k, MIN_DOT, config["BK"])}
    packed = pack(weight, x.dtype, config["BC"], config["BK"], transposed=transposed)
    beside = y if other is None else other
    grid = (n * cdiv(h, config["BH"]) * cdiv(w, config["BW"]), packed.shape[2] // config["BK"])
    operands = (x, packed, bias, other, y, strides_of(x), strides_of(beside), strides_of(y), h, w)
    channels = {"C": c, "CP": packed.shape[1], "K": k, "KP": packed.shape[2], "YK": y.shape[1]}
    vectors = {"X_VECTOR": vector(x), "OTHER_VECTOR": vector(beside), "Y_VECTOR": vector(y)}
    kind = {"FORM": form(activation, x), "GRADIENT": gradient, "PRECISION": dot_precision(x)}
    launch(conv3x3_kernel, grid, *operands, **channels, **vectors, **kind, **config)
    return y


def conv3x3_gelu(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int) -> Tensor:
    y = empty_map(x, weight.shape[0])
    return y if y.numel() == 0 else convolve(x, weight, bias.contiguous(), shortcut, y, activation)


def conv3x3_gelu_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, activation: int, needs_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = empty_map(x, x.shape[1]) if needs_dx else x.new_empty(0)
    if x.numel() == 0:
        return dx, weight.new_zeros(weight.shape), bias.new_zeros(bias.shape)
    g = grad
    if activation != 0:
        g = scratch_map(x, weight.shape[0])
        convolve(x, weight, bias.contiguous(), grad, g, activation, gradient=True)
    if needs_dx:
        convolve(g, weight, None, None, dx, transposed=True)
    return dx, *weight_gradient.dense(x, g, weight, bias, padding=1)
