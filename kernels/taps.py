"""What the kernels with 3x3 convolutions share: tiles of pixels, access to maps, packed weights, sums over the taps.

A tile is a block of BH x BW neighbouring pixels of one image. A map is read and written by its strides, so that NHWC,
NCHW and slices of either need no copy. Its n, h and w strides come in units of VECTOR, the number of neighbouring
channels that lie together and aligned at every pixel: the compiler, which by itself knows only multiples of 16, sees
from the multiplication how wide a load may be. It matters for MLRN's 58 channels.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels import config
from fastsr.kernels.launch import MIN_DOT, cdiv, dot_precision, launch


@triton.jit
def tile_pixels(i_tile, H, W, BH: tl.constexpr, BW: tl.constexpr):
    """Image of tile `i_tile`, and row and column of each of its BH * BW pixels; they may lie beyond H and W."""
    tiles_w = tl.cdiv(W, BW)
    tiles = tl.cdiv(H, BH) * tiles_w
    i_n = i_tile // tiles
    i_tile = i_tile % tiles
    o_p = tl.arange(0, BH * BW)
    return i_n, i_tile // tiles_w * BH + o_p // BW, i_tile % tiles_w * BW + o_p % BW


@triton.jit
def inside(o_h, o_w, H, W):
    return (o_h >= 0) & (o_h < H) & (o_w >= 0) & (o_w < W)


@triton.jit
def pixels_at(i_n, o_h, o_w, strides, VECTOR: tl.constexpr):
    """Offsets of pixels in elements, for strides (n, c, h, w) as `strides_of` gives them."""
    o_p = i_n.to(tl.int64) * strides[0] + o_h.to(tl.int64) * strides[2] + o_w.to(tl.int64) * strides[3]
    return o_p * VECTOR


@triton.jit
def load_map(p_map, o_p, m_p, o_c, C: tl.constexpr, strides):
    """The values [pixels, channels] of a map at pixel offsets `o_p`, 0 where `m_p` is false and beyond C channels."""
    p_in = p_map + o_p[:, None] + (o_c.to(tl.int64) * strides[1])[None, :]
    return tl.load(p_in, mask=m_p[:, None] & (o_c < C)[None, :], other=0.0)


@triton.jit
def store_map(p_map, o_p, m_p, o_c, C: tl.constexpr, strides, b_value):
    p_out = p_map + o_p[:, None] + (o_c.to(tl.int64) * strides[1])[None, :]
    tl.store(p_out, b_value.to(p_map.dtype.element_ty), mask=m_p[:, None] & (o_c < C)[None, :])


@triton.jit
def load_row(p_row, o_c, C: tl.constexpr):
    """C values, a bias say, as [1, channels] in float32, 0 beyond C."""
    return tl.load(p_row + o_c, mask=o_c < C, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_packed(packed, i_row, o_k, BR: tl.constexpr, KP: tl.constexpr):
    """Rows i_row to i_row + BR and columns `o_k` of a packed weight."""
    return tl.load(packed + (i_row + tl.arange(0, BR))[:, None] * KP + o_k[None, :])


@triton.jit
def dot_taps(
    b_acc,
    x,
    packed,
    i_n,
    o_h,
    o_w,
    o_k,
    strides,
    H,
    W,
    C: tl.constexpr,
    CP: tl.constexpr,
    KP: tl.constexpr,
    VECTOR: tl.constexpr,
    BC: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """b_acc [pixels, BK] plus the 3x3 convolution, padding 1, of x with a weight packed as [9, CP, KP]."""
    o_p = pixels_at(i_n, o_h, o_w, strides, VECTOR)
    for i in tl.range(0, 9 * (CP // BC), num_stages=STAGES):
        dh = i // (CP // BC) // 3 - 1
        dw = i // (CP // BC) % 3 - 1
        o_c = i % (CP // BC) * BC + tl.arange(0, BC)
        o_tap = o_p + (dh * strides[2] + dw * strides[3]) * VECTOR
        b_x = load_map(x, o_tap, inside(o_h + dh, o_w + dw, H, W), o_c, C, strides)
        b_acc = tl.dot(b_x, load_packed(packed, i * BC, o_k, BC, KP), b_acc, input_precision=PRECISION)
    return b_acc


@triton.jit
def pack_kernel(
    weight,
    packed,
    strides,  # of rows, columns, and the taps' rows and columns
    R,
    Q,
    SIDE: tl.constexpr,
    TURN: tl.constexpr,
    BR: tl.constexpr,
    BQ: tl.constexpr,
):
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)
    o_q = tl.program_id(1) * BQ + tl.arange(0, BQ)
    i_t = tl.program_id(2)
    i_from = SIDE * SIDE - 1 - i_t if TURN else i_t
    p_from = weight + i_from // SIDE * strides[2] + i_from % SIDE * strides[3]
    p_from += o_r[:, None] * strides[0] + o_q[None, :] * strides[1]
    b_w = tl.load(p_from, mask=(o_r < R)[:, None] & (o_q < Q)[None, :], other=0.0)
    p_to = packed + (i_t * tl.num_programs(0) * BR + o_r)[:, None] * (tl.num_programs(1) * BQ) + o_q[None, :]
    tl.store(p_to, b_w.to(packed.dtype.element_ty))


def round_up(value: int, multiple: int) -> int:
    return cdiv(value, multiple) * multiple


def vector(x: Tensor) -> int:
    """How many neighbouring channels lie together, and aligned, at every pixel of `x`: a power of two up to 16."""
    n, c, h, w = x.stride()
    return math.gcd(n, h, w, 16) if c == 1 else 1


def strides_of(x: Tensor) -> tuple[int, int, int, int]:
    """(n, c, h, w); all but c in units of `vector(x)`."""
    (n, c, h, w), unit = x.stride(), vector(x)
    return n // unit, c, h // unit, w // unit


def pack(weight: Tensor, dtype: torch.dtype, block_in: int, block_out: int, *, transposed: bool = False) -> Tensor:
    """[K, C, s, s] as [s * s, C, K] in `dtype`, with zeros up to multiples of `block_in` and `block_out`.

    Transposed, it is the weight of the adjoint convolution: [s * s, K, C] with the taps turned by 180 degrees.
    """
    (k, c, side, _), (stride_k, stride_c, *stride_taps) = weight.shape, weight.stride()
    rows, columns = (k, c) if transposed else (c, k)
    order = (stride_k, stride_c) if transposed else (stride_c, stride_k)
    size = (side * side, round_up(rows, block_in), round_up(columns, block_out))
    packed = torch.empty(size, dtype=dtype, device=weight.device)
    grid = (size[1] // MIN_DOT, size[2] // block_out, size[0])
    constants = {"SIDE": side, "TURN": transposed, "BR": MIN_DOT, "BQ": block_out}
    launch(pack_kernel, grid, weight, packed, (*order, *stride_taps), rows, columns, **constants, num_warps=4)
    return packed


def dot_tile(kernel: str, x: Tensor, **shape: int) -> config.Tile:
    """The tile of a kernel with matrix products; by how they are made: in half precision, TF32 or exact float32."""
    kind = "half" if x.dtype != torch.float32 else dot_precision(x)
    return config.tile(f"{kernel}_{kind}", x, **shape)
