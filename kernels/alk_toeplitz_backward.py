"""Two parts of alk_conv's backward as products with banded matrices, for float16 and bfloat16 (alk_toeplitz.py).

    du_c = V_c dv_c + dh_c H_c + sum_i ds_c(shifted by i rows) S_ci,  the bands of filters turned round
    M_c = sum over tiles of dh_c^T U_c  [16, 32];  dw_c[t] = sum_j M_c[j, j + t + 8 - k / 2],  one of M's diagonals

The second is every tap's sum over pixels at once: the products of each column of the gradient with each column of u are
added up on tensor cores over all tiles of a program, and those that belong to a tap, only at the end. Likewise v, with
rows in place of columns, and s, a row of taps at a time. Maps are planar here; `mix_backward_kernel` writes them so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.alk_toeplitz import load_plane
from fastsr.kernels.config import Tile, tile
from fastsr.kernels.launch import block, cdiv, launch, strides
from fastsr.kernels.packing import HALO, SIDE, SPAN
from fastsr.kernels.partials import empty_partials, sum_partials

MAX_PARTS = 32  # rows of partial sums: few, since every program ends with as much work as some of its tiles are
DV, DH, DS, U = (tl.constexpr(i) for i in range(4))  # the planar maps, in this order in memory


@triton.jit
def tile_corner(i_tile, H, W, WP, plane, CP: tl.constexpr):
    """Offset of tile `i_tile` in a planar map, its row and its column."""
    tiles_w = tl.cdiv(W, SIDE)
    tiles = tl.cdiv(H, SIDE) * tiles_w
    i_h = i_tile % tiles // tiles_w * SIDE
    i_w = i_tile % tiles_w * SIDE
    return (i_tile // tiles).to(tl.int64) * CP * plane + i_h.to(tl.int64) * WP + i_w, i_h, i_w


@triton.jit
def transpose_kernel(
    maps,
    matrices,
    du,
    H,
    W,
    WP,
    plane,
    size,
    du_strides,
    C: tl.constexpr,
    CP: tl.constexpr,
    RAGGED: tl.constexpr,
    BC: tl.constexpr,
):
    BANDS: tl.constexpr = CP * SPAN * SIDE  # of one kind
    o_tile, i_h, i_w = tile_corner(tl.program_id(0), H, W, WP, plane, CP)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)[:, None, None]
    o_i = tl.arange(0, SIDE)[None, :, None]
    o_j = tl.arange(0, SIDE)[None, None, :]
    o_ki = tl.arange(0, SPAN)[None, :, None]
    o_kj = tl.arange(0, SPAN)[None, None, :]
    p_maps = maps + o_tile + o_c * plane
    size = tl.cast(size, tl.int64)
    p_m = matrices + o_c * (SPAN * SIDE)
    p_columns = p_m + o_ki * SIDE + o_j
    b_d = load_plane(p_maps + DH * size, i_h, i_w, o_i, o_kj - HALO, H, W, WP, RAGGED)
    b_du = tl.dot(b_d, tl.load(p_columns), out_dtype=tl.float32)
    for i in tl.static_range(3):
        b_d = load_plane(p_maps + DS * size, i_h, i_w, o_i + (i - 1), o_kj - HALO, H, W, WP, RAGGED)
        b_du = tl.dot(b_d, tl.load(p_columns + (i + 1) * BANDS), b_du)
    b_d = load_plane(p_maps + DV * size, i_h, i_w, o_ki - HALO, o_j, H, W, WP, RAGGED)
    b_du = tl.dot(tl.load(p_m + 4 * BANDS + o_i * SPAN + o_kj), b_d, b_du)
    i_n = tl.program_id(0) // (tl.cdiv(H, SIDE) * tl.cdiv(W, SIDE))
    p_du = du + i_n.to(tl.int64) * du_strides[0] + i_h.to(tl.int64) * du_strides[2] + i_w.to(tl.int64) * du_strides[3]
    p_du += o_c * du_strides[1] + o_i * du_strides[2] + o_j * du_strides[3]
    m_du = (o_i < H - i_h) & (o_j < W - i_w) & (o_c < C)
    tl.store(p_du, b_du.to(du.dtype.element_ty), mask=m_du)


@triton.jit
def store_diagonals(p_sums, b_m, o_c, C: tl.constexpr, T: tl.constexpr, STRIDE: tl.constexpr):
    """Per channel the sums of T diagonals of [16, 32], at `STRIDE` from channel to channel."""
    o_t = tl.arange(0, SPAN)[None, None, :] - tl.arange(0, SIDE)[None, :, None] - HALO + T // 2
    for t in range(T):
        b_dw = tl.sum(tl.sum(tl.where(o_t == t, b_m, 0.0), 2), 1)
        tl.store(p_sums + o_c * STRIDE + t, b_dw, mask=o_c < C)


@triton.jit
def weight_gradient_kernel(
    maps,
    partials,
    tiles,
    H,
    W,
    WP,
    plane,
    size,
    T: tl.constexpr,
    C: tl.constexpr,
    CP: tl.constexpr,
    RAGGED: tl.constexpr,
    BC: tl.constexpr,
):
    """Axis 1 of the grid: the rows of the 3 x 3, the horizontal and the vertical filter; axis 2: channels."""
    i_kind = tl.program_id(1)
    o_c = tl.program_id(2) * BC + tl.arange(0, BC)
    o_i = tl.arange(0, SIDE)[None, :, None]
    o_j = tl.arange(0, SIDE)[None, None, :]
    o_ki = tl.arange(0, SPAN)[None, :, None]
    o_kj = tl.arange(0, SPAN)[None, None, :]
    p_maps = maps + (o_c * plane)[:, None, None]
    size = tl.cast(size, tl.int64)
    p_sums = partials + tl.program_id(0).to(tl.int64) * (C * (2 * T + 9))
    b_m = tl.zeros([BC, SIDE, SPAN], tl.float32)
    if i_kind == 4:
        for i_tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            o_tile, i_h, i_w = tile_corner(i_tile, H, W, WP, plane, CP)
            b_d = load_plane(p_maps + (o_tile + DV * size), i_h, i_w, o_i, o_j, H, W, WP, RAGGED)
            b_u = load_plane(p_maps + (o_tile + U * size), i_h, i_w, o_ki - HALO, o_j, H, W, WP, RAGGED)
            b_m = tl.dot(b_d, tl.permute(b_u, (0, 2, 1)), b_m)
        store_diagonals(p_sums, b_m, o_c, C, T, T)
    else:
        i_map = tl.where(i_kind == 3, DH, DS)
        shift = tl.where(i_kind == 3, 0, i_kind - 1)
        for i_tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            o_tile, i_h, i_w = tile_corner(i_tile, H, W, WP, plane, CP)
            b_d = load_plane(p_maps + (o_tile + i_map * size), i_h, i_w, o_i, o_j, H, W, WP, RAGGED)
            b_u = load_plane(p_maps + (o_tile + U * size), i_h, i_w, o_i + shift, o_kj - HALO, H, W, WP, RAGGED)
            b_m = tl.dot(tl.permute(b_d, (0, 2, 1)), b_u, b_m)
        if i_kind == 3:
            store_diagonals(p_sums + C * T, b_m, o_c, C, T, T)
        else:
            store_diagonals(p_sums + 2 * C * T + 3 * i_kind, b_m, o_c, C, 3, 9)


def planar_maps(u: Tensor, channels: int) -> Tensor:
    """Room for dv, dh, ds and u of a scratch map `u`: [4, N, channels up to a power of two, H, W up to 16]."""
    n, _, h, w = u.shape
    row = SIDE.value * cdiv(w, SIDE.value)
    return torch.empty(4, n, block(channels), h, row, dtype=u.dtype, device=u.device)


def gradients(
    maps: Tensor, matrices: Tensor, du: Tensor, d_weights: Sequence[Tensor], channels: int, config: Tile
) -> None:
    """Fill the scratch map `du`, and `d_weights`: of the vertical, the horizontal and the 3 x 3 filters."""
    _, n, padded, h, row = maps.shape
    width = du.shape[3]
    places = (h, width, row, h * row, maps.stride(0))
    sizes = {"C": channels, "CP": padded, "RAGGED": row != width}
    tiles = n * cdiv(h, SIDE.value) * cdiv(width, SIDE.value)
    config["BC"] = min(config["BC"], padded)
    grid = (tiles, padded // config["BC"])
    launch(transpose_kernel, grid, maps, matrices, du, *places, strides(du), **sizes, **config)
    config = tile("alk_toeplitz_gradient", du, channels=channels)
    config["BC"] = min(config["BC"], padded)
    partials = empty_partials(du, min(tiles, MAX_PARTS), sum(d.numel() for d in d_weights))
    parts = (partials.shape[0], 5, padded // config["BC"])
    sizes["T"] = d_weights[0].shape[2]
    launch(weight_gradient_kernel, parts, maps, partials, tiles, *places, **sizes, **config)
    sum_partials(partials, list(d_weights))
