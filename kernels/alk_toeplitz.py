"""The part of alk_conv behind the 1x1 with its depthwise convolutions on tensor cores, for float16 and bfloat16.

    v_c = V_c U_c,  h_c = U_c H_c,  s_c = sum_i U_c(shifted by i rows) S_ci       per channel c, for a 16 x 16 tile
    V_c [16, 32], H_c [32, 16], S_ci [32, 16]: banded (Toeplitz) matrices of the taps;  U_c: the tile with a halo of 8

A row of the band is a filter, shifted: the products with zeros cost less than the shifted loads of the tap form
(alk_conv.py) do in instructions. An infinity or NaN reaches the whole halo, because zero times it is NaN. u is planar
here, [N, C, H, W] with rows of a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.activation import activate, form
from fastsr.kernels.config import Tile, tile
from fastsr.kernels.launch import block, cdiv, launch, strides, vectors
from fastsr.kernels.packing import HALO, SIDE, SPAN

MAX_TAPS = 17  # whose halo is as wide as that of the bands


@triton.jit
def load_plane(p_u, i_h, i_w, o_h, o_w, H, W, WP, RAGGED: tl.constexpr):
    """u at rows `o_h`, columns `o_w` from the tile's corner, 0 outside the image; beyond column W, u is undefined."""
    m_u = (o_h >= -i_h) & (o_h < H - i_h) & (o_w >= -i_w) & (o_w < WP - i_w)
    b_u = tl.load(p_u + (o_h * WP + o_w), mask=m_u, other=0.0)
    if RAGGED:
        b_u = tl.where(o_w < W - i_w, b_u, 0.0)
    return b_u


@triton.jit
def load_channels(p_vector, o_c, C: tl.constexpr):
    return tl.load(p_vector + o_c, mask=o_c < C, other=0.0).to(tl.float32)


@triton.jit
def branches(
    p_u, matrices, v_bias, h_bias, s_bias, o_c, i_h, i_w, H, W, WP, plane,
    C: tl.constexpr, CP: tl.constexpr, GELU: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """GELU(v) + GELU(h) + GELU(s) of the channels `o_c` [BC, 1, 1], as [BC, 16, 16]; 0 beyond C."""
    SIZE: tl.constexpr = CP * SPAN * SIDE  # of the matrices of one kind
    o_i = tl.arange(0, SIDE)[None, :, None]
    o_j = tl.arange(0, SIDE)[None, None, :]
    o_ki = tl.arange(0, SPAN)[None, :, None]
    o_kj = tl.arange(0, SPAN)[None, None, :]
    p_u = p_u + o_c * plane
    p_m = matrices + o_c * (SPAN * SIDE)
    p_columns = p_m + o_ki * SIDE + o_j
    b_u = load_plane(p_u, i_h, i_w, o_i, o_kj - HALO, H, W, WP, RAGGED)
    b_h = tl.dot(b_u, tl.load(p_columns), out_dtype=tl.float32)
    b_a = activate(b_h + load_channels(h_bias, o_c, C), GELU)
    b_s = tl.dot(b_u, tl.load(p_columns + 2 * SIZE), out_dtype=tl.float32)
    b_u = load_plane(p_u, i_h, i_w, o_i - 1, o_kj - HALO, H, W, WP, RAGGED)
    b_s = tl.dot(b_u, tl.load(p_columns + SIZE), b_s)
    b_u = load_plane(p_u, i_h, i_w, o_i + 1, o_kj - HALO, H, W, WP, RAGGED)
    b_s = tl.dot(b_u, tl.load(p_columns + 3 * SIZE), b_s)
    b_a += activate(b_s + load_channels(s_bias, o_c, C), GELU)
    b_u = load_plane(p_u, i_h, i_w, o_ki - HALO, o_j, H, W, WP, RAGGED)
    b_v = tl.dot(tl.load(p_m + 4 * SIZE + o_i * SPAN + o_kj), b_u, out_dtype=tl.float32)
    b_a += activate(b_v + load_channels(v_bias, o_c, C), GELU)
    if C != CP:
        b_a = tl.where(o_c < C, b_a, 0.0)
    return b_a


@triton.jit
def corner(i_n, i_h, i_w, strides):
    return i_n * strides[0] + i_h.to(tl.int64) * strides[2] + i_w.to(tl.int64) * strides[3]


@triton.jit
def store(
    b_xhat, norm_weight, norm_bias, p_shortcut, p_y, o_c, shortcut_strides, y_strides, height, width,
    C: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """The norm's affine part, shortcut and activation, for pixels of a tile of height x width."""
    o_i = tl.arange(0, SIDE)[None, :, None]
    o_j = tl.arange(0, SIDE)[None, None, :]
    m_y = (o_i < height) & (o_j < width) & (o_c < C)
    b_y = b_xhat * load_channels(norm_weight, o_c, C) + load_channels(norm_bias, o_c, C)
    if p_shortcut is not None:
        o_s = o_c * shortcut_strides[1] + o_i * shortcut_strides[2] + o_j * shortcut_strides[3]
        b_y += tl.load(p_shortcut + o_s, mask=m_y, other=0.0).to(tl.float32)
    o_y = o_c * y_strides[1] + o_i * y_strides[2] + o_j * y_strides[3]
    tl.store(p_y + o_y, activate(b_y, FORM).to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def mix_kernel(
    u,
    matrices,
    v_bias,
    h_bias,
    s_bias,
    norm_weight,
    norm_bias,
    shortcut,
    y,
    H,
    W,
    WP,
    plane,
    shortcut_strides,
    y_strides,
    eps,
    C: tl.constexpr,
    CP: tl.constexpr,
    GELU: tl.constexpr,
    FORM: tl.constexpr,
    RAGGED: tl.constexpr,
    BC: tl.constexpr,
):
    tl.static_assert(CP % BC == 0)
    tiles_w = tl.cdiv(W, SIDE)
    tiles = tl.cdiv(H, SIDE) * tiles_w
    i_n = (tl.program_id(0) // tiles).to(tl.int64)
    i_h = tl.program_id(0) % tiles // tiles_w * SIDE
    i_w = tl.program_id(0) % tiles_w * SIDE
    # Offsets are 64 bits wide up to the tile's corner, 32 from there on (`toeplitz_tile`).
    p_u = u + (i_n * CP * plane + i_h.to(tl.int64) * WP + i_w)
    o_c = tl.arange(0, BC)[:, None, None]
    # BC channels at a time, because the operands of a product pass through registers; the results stay there.
    parts = ()
    b_mean = tl.zeros([1, SIDE, SIDE], tl.float32)
    for i in tl.static_range(CP // BC):
        b_a = branches(
            p_u, matrices, v_bias, h_bias, s_bias, o_c + i * BC, i_h, i_w, H, W, WP, plane, C, CP, GELU, RAGGED
        )  # fmt: skip
        parts = parts + (b_a,)  # noqa: RUF005 - Triton has no starred tuples
        b_mean += tl.sum(b_a, 0)[None] * (1.0 / C)
        tl.debug_barrier()  # or the compiler loads the next part during this one, and spills
    b_variance = tl.zeros([1, SIDE, SIDE], tl.float32)
    for i in tl.static_range(CP // BC):
        b_d = parts[i] - b_mean
        if (i + 1) * BC > C:
            b_d = tl.where(o_c + i * BC < C, b_d, 0.0)
        b_variance += tl.sum(b_d * b_d, 0)[None] * (1.0 / C)
    b_r = tl.math.rsqrt(b_variance + eps)
    p_s = None
    if shortcut is not None:
        p_s = shortcut + corner(i_n, i_h, i_w, shortcut_strides)
    p_y = y + corner(i_n, i_h, i_w, y_strides)
    for i in tl.static_range(CP // BC):
        store(
            (parts[i] - b_mean) * b_r, norm_weight, norm_bias, p_s, p_y, o_c + i * BC, shortcut_strides, y_strides,
            H - i_h, W - i_w, C, FORM,
        )  # fmt: skip


def toeplitz_tile(x: Tensor, channels: int, taps: int, kernel: str = "alk_toeplitz") -> Tile | None:
    """Launch options of this form for maps like `x`, or None: the tables say up to how many channels it pays."""
    image = block(channels) * x.shape[2] * SIDE.value * cdiv(x.shape[3], SIDE.value)
    if x.dtype == torch.float32 or taps > MAX_TAPS or image >= 2**31:
        return None
    config = tile(kernel, x, channels=channels)
    return config if block(channels) <= config.pop("MOST") else None


def planar_map(x: Tensor, channels: int) -> Tensor:
    """A map like `x` for u: planes of rows of a multiple of 16, channels up to a power of two."""
    n, _, h, w = x.shape
    padded = torch.empty(n, block(channels), h, SIDE.value * cdiv(w, SIDE.value), dtype=x.dtype, device=x.device)
    return padded[..., :w]


def mix(
    u: Tensor,
    matrices: Tensor,
    weights: Sequence[Tensor],
    y: Tensor,
    eps: float,
    form_y: int,
    shortcut: Tensor | None,
    config: Tile,
) -> None:
    """Everything behind the 1x1: fill `y` from the planar `u`; `weights` as in ALKConvWeights."""
    biases = vectors([weights[i] for i in (2, 4, 6, 7, 8)])
    n, c, h, w = y.shape
    padded, row = u.shape[1], u.stride(2)
    operands = (u, matrices, *biases, shortcut, y, h, w, row, h * row)
    places = (None if shortcut is None else strides(shortcut), strides(y))
    sizes = {"C": c, "CP": padded, "GELU": form(1, u), "FORM": form_y, "RAGGED": row != w}
    config["BC"] = min(config["BC"], padded)
    grid = (n * cdiv(h, SIDE.value) * cdiv(w, SIDE.value),)
    launch(mix_kernel, grid, *operands, *places, eps, **sizes, **config)
