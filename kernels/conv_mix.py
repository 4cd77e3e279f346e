"""conv_mix: MLRN's convolution mixer with the 1x1 behind it.

q = dw3x3(x) + b_dw;  d = act(q) + x                       # d = x without the depthwise convolution
p = d W_pw + b_pw;    t = act(p) + shortcut;  y = t W_c5 + b_c5
d_shortcut = grad W_c5^T;  dp = d_shortcut act'(p);  dd = dp W_pw^T;  dq = dd act'(q)
dx = dd + dw3x3^T(dq);  dW_c5 = t^T grad;  dW_pw = d^T dp;  dw_dw[c, t] = sum_p x[p + t, c] dq[p, c]
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels import weight_gradient
from fastsr.kernels.activation import activate, derivative, form
from fastsr.kernels.config import Tile
from fastsr.kernels.launch import MIN_DOT, block, cdiv, dot_precision, launch
from fastsr.kernels.maps import scratch_map
from fastsr.kernels.taps import (
    dot_tile,
    inside,
    load_map,
    load_packed,
    load_row,
    pack,
    pixels_at,
    store_map,
    strides_of,
    tile_pixels,
    vector,
)
from fastsr.ops._define import empty_map


@triton.jit
def depthwise(
    b_sum,
    x,
    weight,
    i_n,
    o_h,
    o_w,
    o_c,
    strides,
    H,
    W,
    C: tl.constexpr,
    XC: tl.constexpr,
    VECTOR: tl.constexpr,
    TURN: tl.constexpr,
):
    """b_sum [pixels, channels] plus the depthwise 3x3 convolution of x, which has XC channels.

    With TURN the filter is turned by 180 degrees: the adjoint.
    """
    o_p = pixels_at(i_n, o_h, o_w, strides, VECTOR)
    for i in range(3):  # not unrolled, or all nine taps are in registers at once
        for j in tl.static_range(3):
            m_p = inside(o_h + (i - 1), o_w + (j - 1), H, W)
            o_tap = o_p + ((i - 1) * strides[2] + (j - 1) * strides[3]) * VECTOR
            b_x = load_map(x, o_tap, m_p, o_c, XC, strides).to(tl.float32)
            i_t = 8 - 3 * i - j if TURN else 3 * i + j
            b_sum += b_x * tl.load(weight + o_c * 9 + i_t, mask=o_c < C, other=0.0).to(tl.float32)[None, :]
    return b_sum


@triton.jit
def mix(
    x,
    dw_weight,
    dw_bias,
    i_n,
    o_h,
    o_w,
    o_c,
    strides,
    H,
    W,
    C: tl.constexpr,
    VECTOR: tl.constexpr,
    FORM: tl.constexpr,
):
    """q and d of a tile; without a depthwise convolution both are x."""
    b_x = load_map(x, pixels_at(i_n, o_h, o_w, strides, VECTOR), inside(o_h, o_w, H, W), o_c, C, strides)
    b_x = b_x.to(tl.float32)
    if dw_weight is not None:
        b_q = tl.zeros([o_h.shape[0], o_c.shape[0]], tl.float32) + load_row(dw_bias, o_c, C)
        b_q = depthwise(b_q, x, dw_weight, i_n, o_h, o_w, o_c, strides, H, W, C, C, VECTOR, False)
        b_d = activate(b_q, FORM) + b_x
    else:
        b_q = b_x
        b_d = b_x
    return b_q, b_d


@triton.jit(do_not_specialize=["H", "W"])
def forward_kernel(
    x,
    shortcut,
    dw_weight,
    dw_bias,
    pw_packed,
    pw_bias,
    c5_packed,
    c5_bias,
    y,
    x_strides,
    shortcut_strides,
    y_strides,
    H,
    W,
    C: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    X_VECTOR: tl.constexpr,
    SHORTCUT_VECTOR: tl.constexpr,
    Y_VECTOR: tl.constexpr,
    FORM: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), H, W, BH, BW)
    m_p = inside(o_h, o_w, H, W)
    o_c = tl.arange(0, BC)
    dtype = pw_packed.dtype.element_ty
    _, b_d = mix(x, dw_weight, dw_bias, i_n, o_h, o_w, o_c, x_strides, H, W, C, X_VECTOR, FORM)
    b_p = tl.dot(b_d.to(dtype), load_packed(pw_packed, 0, o_c, BC, BC), input_precision=PRECISION)
    b_t = activate(b_p + load_row(pw_bias, o_c, C), FORM)
    o_p = pixels_at(i_n, o_h, o_w, shortcut_strides, SHORTCUT_VECTOR)
    b_t += load_map(shortcut, o_p, m_p, o_c, C, shortcut_strides).to(tl.float32)
    b_t = b_t.to(dtype)
    o_p = pixels_at(i_n, o_h, o_w, y_strides, Y_VECTOR)
    for i in range(0, KP, BK):
        o_k = i + tl.arange(0, BK)
        b_y = tl.dot(b_t, load_packed(c5_packed, 0, o_k, BC, KP), input_precision=PRECISION)
        store_map(y, o_p, m_p, o_k, K, y_strides, b_y + load_row(c5_bias, o_k, K))


@triton.jit(do_not_specialize=["H", "W"])
def backward_kernel(
    grad,
    x,
    shortcut,
    dw_weight,
    dw_bias,
    pw_packed,
    pw_bias,
    c5_transposed,
    pw_transposed,
    d_shortcut,
    d,
    t,
    dp,
    dq,  # without a depthwise convolution it is dx
    grad_strides,
    x_strides,
    shortcut_strides,
    d_shortcut_strides,
    scratch_strides,  # of d, t and dp, which have channels of zeros from C to SC
    dq_strides,
    H,
    W,
    C: tl.constexpr,
    SC: tl.constexpr,
    QC: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    GRAD_VECTOR: tl.constexpr,
    X_VECTOR: tl.constexpr,
    SHORTCUT_VECTOR: tl.constexpr,
    D_SHORTCUT_VECTOR: tl.constexpr,
    SCRATCH_VECTOR: tl.constexpr,
    DQ_VECTOR: tl.constexpr,
    FORM: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All but dx and the weights' gradients, and what these are made of."""
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), H, W, BH, BW)
    m_p = inside(o_h, o_w, H, W)
    o_c = tl.arange(0, BC)
    dtype = pw_packed.dtype.element_ty
    o_scratch = pixels_at(i_n, o_h, o_w, scratch_strides, SCRATCH_VECTOR)
    b_q, b_d = mix(x, dw_weight, dw_bias, i_n, o_h, o_w, o_c, x_strides, H, W, C, X_VECTOR, FORM)
    b_d = b_d.to(dtype)
    if dw_weight is not None:
        store_map(d, o_scratch, m_p, o_c, SC, scratch_strides, b_d)
    b_p = tl.dot(b_d, load_packed(pw_packed, 0, o_c, BC, BC), input_precision=PRECISION) + load_row(pw_bias, o_c, C)
    o_p = pixels_at(i_n, o_h, o_w, shortcut_strides, SHORTCUT_VECTOR)
    b_t = activate(b_p, FORM) + load_map(shortcut, o_p, m_p, o_c, C, shortcut_strides).to(tl.float32)
    store_map(t, o_scratch, m_p, o_c, SC, scratch_strides, b_t)
    o_p = pixels_at(i_n, o_h, o_w, grad_strides, GRAD_VECTOR)
    b_dt = tl.zeros([BH * BW, BC], tl.float32)
    for i in range(0, KP, BK):
        b_grad = load_map(grad, o_p, m_p, i + tl.arange(0, BK), K, grad_strides)
        b_dt = tl.dot(b_grad, load_packed(c5_transposed, i, o_c, BK, BC), b_dt, input_precision=PRECISION)
    o_p = pixels_at(i_n, o_h, o_w, d_shortcut_strides, D_SHORTCUT_VECTOR)
    store_map(d_shortcut, o_p, m_p, o_c, C, d_shortcut_strides, b_dt)
    b_dp = (b_dt * derivative(b_p, FORM)).to(dtype)
    store_map(dp, o_scratch, m_p, o_c, SC, scratch_strides, b_dp)
    b_dq = tl.dot(b_dp, load_packed(pw_transposed, 0, o_c, BC, BC), input_precision=PRECISION)
    if dw_weight is not None:
        b_dq *= derivative(b_q, FORM)
    store_map(dq, pixels_at(i_n, o_h, o_w, dq_strides, DQ_VECTOR), m_p, o_c, QC, dq_strides, b_dq)


@triton.jit(do_not_specialize=["H", "W"])
def dx_kernel(
    dp,
    dq,
    dw_weight,
    pw_transposed,
    dx,
    scratch_strides,
    dx_strides,
    H,
    W,
    C: tl.constexpr,
    SC: tl.constexpr,
    SCRATCH_VECTOR: tl.constexpr,
    DX_VECTOR: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dx = dp W_pw^T + dw3x3^T(dq)."""
    i_n, o_h, o_w = tile_pixels(tl.program_id(0), H, W, BH, BW)
    m_p = inside(o_h, o_w, H, W)
    o_c = tl.arange(0, BC)
    b_dp = load_map(dp, pixels_at(i_n, o_h, o_w, scratch_strides, SCRATCH_VECTOR), m_p, o_c, SC, scratch_strides)
    b_dx = tl.dot(b_dp, load_packed(pw_transposed, 0, o_c, BC, BC), input_precision=PRECISION)
    b_dx = depthwise(
        b_dx, dq, dw_weight, i_n, o_h, o_w, o_c, scratch_strides, H, W, C, SC, SCRATCH_VECTOR, True
    )  # fmt: skip
    store_map(dx, pixels_at(i_n, o_h, o_w, dx_strides, DX_VECTOR), m_p, o_c, C, dx_strides, b_dx)


def contiguous(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()


def grid_of(x: Tensor, config: Tile) -> tuple[int]:
    return (x.shape[0] * cdiv(x.shape[2], config["BH"]) * cdiv(x.shape[3], config["BW"]),)


def conv_mix(
    x: Tensor,
    shortcut: Tensor,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor,
    c5_weight: Tensor,
    c5_bias: Tensor,
    activation: int,
) -> Tensor:
    (_, c, h, w), k = x.shape, c5_weight.shape[0]
    y = empty_map(x, k)
    if y.numel() == 0:
        return y
    config = dot_tile("conv_mix", x, channels=c)
    block_c, config["BK"] = block(c, MIN_DOT), block(k, MIN_DOT, config["BK"])
    pw, c5 = pack(pw_weight, x.dtype, block_c, block_c), pack(c5_weight, x.dtype, block_c, config["BK"])
    dw, biases = contiguous(dw_weight), [contiguous(b) for b in (dw_bias, pw_bias, c5_bias)]
    operands = (x, shortcut, dw, biases[0], pw, biases[1], c5, biases[2], y)
    maps = (strides_of(x), strides_of(shortcut), strides_of(y), h, w)
    vectors = {"X_VECTOR": vector(x), "SHORTCUT_VECTOR": vector(shortcut), "Y_VECTOR": vector(y)}
    kind = {"FORM": form(activation, x), "PRECISION": dot_precision(x)}
    sizes = {"C": c, "K": k, "KP": c5.shape[2], "BC": block_c}
    launch(forward_kernel, grid_of(x, config), *operands, *maps, **sizes, **vectors, **kind, **config)
    return y


def conv_mix_backward(
    grad: Tensor,
    x: Tensor,
    shortcut: Tensor,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor,
    c5_weight: Tensor,
    c5_bias: Tensor,
    activation: int,
) -> tuple[Tensor, ...]:
    (_, c, h, w), k = x.shape, c5_weight.shape[0]
    dx, d_shortcut = empty_map(x, c), empty_map(x, c)
    parameters = (dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias)
    if x.numel() == 0:
        return dx, d_shortcut, *(x.new_empty(0) if p is None else p.new_zeros(p.shape) for p in parameters)
    config = dot_tile("conv_mix_backward", x, channels=c)
    block_c, config["BK"] = block(c, MIN_DOT), block(k, MIN_DOT, config["BK"])
    pw = pack(pw_weight, x.dtype, block_c, block_c)
    pw_transposed = pack(pw_weight, x.dtype, block_c, block_c, transposed=True)
    c5_transposed = pack(c5_weight, x.dtype, config["BK"], block_c, transposed=True)
    dw, bias = contiguous(dw_weight), contiguous(dw_bias)
    d, t, dp, dq = (scratch_map(x, c) for _ in range(4))
    if dw is None:
        d, dq = x, dx
    operands = (grad, x, shortcut, dw, bias, pw, contiguous(pw_bias), c5_transposed, pw_transposed, d_shortcut)
    operands += (d, t, dp, dq)
    maps = {"GRAD": grad, "X": x, "SHORTCUT": shortcut, "D_SHORTCUT": d_shortcut, "SCRATCH": t, "DQ": dq}
    kind = {"FORM": form(activation, x), "PRECISION": dot_precision(x)}
    sizes = {"C": c, "SC": t.shape[1], "QC": dq.shape[1], "K": k, "KP": c5_transposed.shape[1], "BC": block_c}
    vectors = {f"{name}_VECTOR": vector(m) for name, m in maps.items()}
    all_strides = [strides_of(m) for m in maps.values()]
    launch(backward_kernel, grid_of(x, config), *operands, *all_strides, h, w, **sizes, **vectors, **kind, **config)

    d_dw, d_dw_bias = x.new_empty(0), x.new_empty(0)
    if dw_weight is not None and dw_bias is not None:
        config = dot_tile("conv_mix_dx", x, channels=c)
        operands = (dp, dq, dw, pw_transposed, dx, strides_of(t), strides_of(dx), h, w)
        sizes = {"C": c, "SC": t.shape[1], "BC": block_c, "SCRATCH_VECTOR": vector(t), "DX_VECTOR": vector(dx)}
        launch(dx_kernel, grid_of(x, config), *operands, **sizes, PRECISION=dot_precision(x), **config)
        d_dw, d_dw_bias = weight_gradient.depthwise(x, dq, dw_weight, dw_bias)
    d_pw = weight_gradient.dense(d, dp, pw_weight, pw_bias)
    return dx, d_shortcut, d_dw, d_dw_bias, *d_pw, *weight_gradient.dense(t, grad, c5_weight, c5_bias)
