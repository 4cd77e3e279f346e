"""esa_cca: enhanced spatial attention, contrast-aware channel attention, pixel norm and residual in a row.

    z = x sigmoid(conv4(bilinear(out) + conv_f(c1)))                     # esa.py, esa_path.py
    y = normalise(z * scale) * norm_weight + norm_bias + shortcut        # scale from the statistics of z, cca_norm.py

The gate's kernel sums up the statistics of what it writes, so that z is read once less than by the two operators, and
there is a launch less. For inference; with autograd the two operators run one behind the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.cca_norm import apply, attention
from fastsr.kernels.channel_attention import parts_of_image, store_moments
from fastsr.kernels.esa import gated
from fastsr.kernels.esa_path import Path, run_path
from fastsr.kernels.launch import MIN_DOT, block, cdiv, dot_precision, launch, vectors
from fastsr.kernels.partials import empty_partials
from fastsr.kernels.taps import dot_tile, inside, pixels_at, store_map, strides_of, tile_pixels, vector
from fastsr.ops._define import empty_map


@triton.jit(do_not_specialize=["H", "W", "SMALL_H", "SMALL_W", "tiles", "parts"])
def gate_kernel(
    x,
    c1,
    out,
    conv_f,
    conv_f_bias,
    conv4,
    conv4_bias,
    z,
    moments,
    counts,
    x_strides,
    z_strides,
    H,
    W,
    SMALL_H,
    SMALL_W,
    ratio_h,
    ratio_w,
    tiles,
    parts,
    C: tl.constexpr,
    X_VECTOR: tl.constexpr,
    Z_VECTOR: tl.constexpr,
    f: tl.constexpr,
    F: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program does every `parts`-th tile of an image: z, and per place running mean and squares (Welford)."""
    i_n = tl.program_id(0) // parts
    o_c = tl.arange(0, BC)
    b_count = tl.zeros([BH * BW], tl.float32)
    b_mean = tl.zeros([BH * BW, BC], tl.float32)
    b_squares = tl.zeros([BH * BW, BC], tl.float32)
    for i_tile in range(tl.program_id(0) % parts, tiles, parts):
        _, o_h, o_w = tile_pixels(i_tile, H, W, BH, BW)
        m_p = inside(o_h, o_w, H, W)
        b_z = gated(
            x, c1, out, conv_f, conv_f_bias, conv4, conv4_bias, i_n, o_h, o_w, m_p, o_c, x_strides, H, W,
            SMALL_H, SMALL_W, ratio_h, ratio_w, C, X_VECTOR, f, F, PRECISION,
        ).to(z.dtype.element_ty)  # fmt: skip
        store_map(z, pixels_at(i_n, o_h, o_w, z_strides, Z_VECTOR), m_p, o_c, C, z_strides, b_z)
        b_count += tl.where(m_p, 1.0, 0.0)
        b_d = tl.where(m_p[:, None], b_z.to(tl.float32) - b_mean, 0.0)
        b_mean += b_d * (1.0 / tl.maximum(b_count, 1.0))[:, None]
        b_squares += b_d * (b_z.to(tl.float32) - b_mean)
    store_moments(b_count, b_mean, b_squares, moments, counts, tl.program_id(0), o_c, C)


def gate(x: Tensor, weights: tuple[Tensor, ...], path: Path, z: Tensor) -> tuple[Tensor, Tensor]:
    """Fill `z`; its moments [all parts, 2, C] and their counts, for `attention` in cca_norm.py."""
    n, c, h, w = x.shape
    f, (small_h, small_w) = weights[0].shape[0], path.out.shape[1:3]
    config = dot_tile("esa_cca_gate", x, channels=c)
    tiles = cdiv(h, config["BH"]) * cdiv(w, config["BW"])
    parts = parts_of_image(n, tiles)
    moments, counts = empty_partials(x, n * parts, 2, c), empty_partials(x, n * parts)
    operands = (x, path.c1, path.out, *weights[-4:], z, moments, counts, strides_of(x), strides_of(z))
    shapes = (h, w, small_h, small_w, small_h / h, small_w / w, tiles, parts)
    sizes = {"C": c, "X_VECTOR": vector(x), "Z_VECTOR": vector(z), "f": f, "F": block(f, MIN_DOT)}
    kind = {"BC": block(c, MIN_DOT), "PRECISION": dot_precision(x)}
    launch(gate_kernel, (n * parts,), *operands, *shapes, **sizes, **kind, **config)
    return moments, counts


def esa_cca(
    x: Tensor,
    shortcut: Tensor,
    esa_weights: list[Tensor],
    conv2_padding: int,
    du0_weight: Tensor,
    du0_bias: Tensor,
    du2_weight: Tensor,
    du2_bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> Tensor:
    n, c, _, _ = x.shape
    y = empty_map(x, c)
    if y.numel() == 0:
        return y
    weights = tuple(vectors(esa_weights))
    z = torch.empty_like(y)
    moments, counts = gate(x, weights, run_path(x, weights, conv2_padding, keep=False), z)
    statistics = torch.empty(n, 2, c, dtype=torch.float64, device=x.device)
    scale = attention(moments, counts, (du0_weight, du0_bias, du2_weight, du2_bias), statistics)
    apply(z, shortcut, scale, norm_weight, norm_bias, eps, y)
    return y
