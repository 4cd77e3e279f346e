"""cca_norm: contrast-aware channel attention, pixel norm and residual.

    mean, variance over H x W per image and channel;  contrast = sqrt(variance) + mean
    scale = sigmoid(du2 relu(du0 contrast + b0) + b2);  y = normalise(x * scale) * norm_weight + norm_bias + shortcut

    dz = normalise_backward(grad * norm_weight)  (or grad, without a norm);  dscale = sum_p(dz x)
    dcontrast from dscale through the two layers
    dx = dz scale + dcontrast (1 + (x - mean) / sqrt(variance)) / (H W)

Forward: partial moments, the attention (channel_attention.py), the rest. Moments are running ones per place in the
tile (Welford), in float32: no sum of squares cancels, none overflows. Backward: partial sums, the attention's gradient,
the rest; it computes the norm twice, which costs less than to write and read its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.channel_attention import (
    attention_backward_kernel,
    attention_kernel,
    constants,
    parts_of_image,
    scale_kernel,
    store_moments,
)
from fastsr.kernels.config import tile
from fastsr.kernels.launch import block, cdiv, launch, strides, vectors
from fastsr.kernels.maps import map_offsets
from fastsr.kernels.partials import empty_partials, sum_partials
from fastsr.kernels.pixel_norm import normalise, normalise_backward
from fastsr.ops._define import empty_map


@triton.jit
def moments_kernel(
    x, moments, counts, pixels, width, x_strides, parts, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    i_n = tl.program_id(0) // parts
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    first = (tl.program_id(0) % parts) * BP
    b_mean = tl.zeros([BP, BC], tl.float32)
    b_squares = tl.zeros([BP, BC], tl.float32)
    count = 0.0
    for i_p in range(first, pixels, parts * BP):
        o_p = i_p + tl.arange(0, BP)
        m_x = (o_p < pixels)[:, None] & m_c
        b_x = tl.load(x + map_offsets(i_n, o_p, o_c, width, x_strides), mask=m_x, other=0.0).to(tl.float32)
        count += 1.0
        b_d = tl.where(m_x, b_x - b_mean, 0.0)
        b_mean += b_d * (1.0 / count)
        b_squares += b_d * tl.where(m_x, b_x - b_mean, 0.0)
    # Only in the last step may pixels of the tile lie beyond the image.
    last = first + (count.to(tl.int32) - 1) * (parts * BP) + tl.arange(0, BP)
    b_count = tl.where(last < pixels, count, count - 1.0)
    store_moments(b_count, b_mean, b_squares, moments, counts, tl.program_id(0), o_c, C)


@triton.jit
def apply_kernel(
    x,
    shortcut,
    scale,
    weight,
    bias,
    y,
    pixels,
    width,
    tiles,
    x_strides,
    shortcut_strides,
    y_strides,
    eps,
    C: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    i_n = tl.program_id(0) // tiles
    o_p = (tl.program_id(0) % tiles) * BP + tl.arange(0, BP)
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    m_x = (o_p < pixels)[:, None] & m_c
    b_x = tl.load(x + map_offsets(i_n, o_p, o_c, width, x_strides), mask=m_x, other=0.0).to(tl.float32)
    b_y = b_x * tl.load(scale + i_n * C + o_c, mask=o_c < C, other=0.0)[None, :]
    if weight is not None:
        b_y, _ = normalise(b_y, m_c, eps, C)
        b_y *= tl.load(weight + o_c, mask=o_c < C, other=0.0).to(tl.float32)[None, :]
        b_y += tl.load(bias + o_c, mask=o_c < C, other=0.0).to(tl.float32)[None, :]
    p_s = shortcut + map_offsets(i_n, o_p, o_c, width, shortcut_strides)
    b_y += tl.load(p_s, mask=m_x, other=0.0).to(tl.float32)
    tl.store(y + map_offsets(i_n, o_p, o_c, width, y_strides), b_y, mask=m_x)


@triton.jit
def norm_backward(b_g, b_x, b_scale, weight, eps, o_c, m_c, C: tl.constexpr):
    """dz, the gradient of x * scale, and xhat."""
    if weight is not None:
        b_xhat, b_r = normalise(b_x * b_scale, m_c, eps, C)
        b_w = tl.load(weight + o_c, mask=o_c < C, other=0.0).to(tl.float32)[None, :]
        b_z = normalise_backward(b_g * b_w, b_xhat, b_r, C)
    else:
        b_xhat = b_x
        b_z = b_g
    return b_z, b_xhat


@triton.jit
def sums_backward_kernel(
    grad,
    x,
    scale,
    weight,
    partials,
    pixels,
    width,
    grad_strides,
    x_strides,
    parts,
    eps,
    C: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    i_n = tl.program_id(0) // parts
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    b_scale = tl.load(scale + i_n * C + o_c, mask=o_c < C, other=0.0)[None, :]
    b_dscale = tl.zeros([BP, BC], tl.float32)
    b_dw = tl.zeros([BP, BC], tl.float32)
    b_db = tl.zeros([BP, BC], tl.float32)
    for i_p in range((tl.program_id(0) % parts) * BP, pixels, parts * BP):
        o_p = i_p + tl.arange(0, BP)
        m_x = (o_p < pixels)[:, None] & m_c
        b_x = tl.load(x + map_offsets(i_n, o_p, o_c, width, x_strides), mask=m_x, other=0.0).to(tl.float32)
        b_g = tl.load(grad + map_offsets(i_n, o_p, o_c, width, grad_strides), mask=m_x, other=0.0).to(tl.float32)
        b_z, b_xhat = norm_backward(b_g, b_x, b_scale, weight, eps, o_c, m_c, C)
        b_dscale += b_z * b_x
        b_dw += b_g * b_xhat
        b_db += b_g
    p_part = partials + tl.program_id(0) * (3 * C) + o_c
    tl.store(p_part, tl.sum(b_dscale, 0), mask=o_c < C)
    tl.store(p_part + C, tl.sum(b_dw, 0), mask=o_c < C)
    tl.store(p_part + 2 * C, tl.sum(b_db, 0), mask=o_c < C)


@triton.jit
def apply_backward_kernel(
    grad,
    x,
    scale,
    terms,
    weight,
    dx,
    line,
    pixels,
    width,
    tiles,
    grad_strides,
    x_strides,
    dx_strides,
    eps,
    C: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    i_n = tl.program_id(0) // tiles
    o_p = (tl.program_id(0) % tiles) * BP + tl.arange(0, BP)
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    m_x = (o_p < pixels)[:, None] & m_c
    p_terms = terms + i_n.to(tl.int64) * line + o_c
    b_constant = tl.load(p_terms, mask=o_c < C, other=0.0)[None, :]
    b_slope = tl.load(p_terms + C, mask=o_c < C, other=0.0)[None, :]
    b_mean = tl.load(p_terms + 2 * C, mask=o_c < C, other=0.0)[None, :]
    b_scale = tl.load(scale + i_n * C + o_c, mask=o_c < C, other=0.0)[None, :]
    b_x = tl.load(x + map_offsets(i_n, o_p, o_c, width, x_strides), mask=m_x, other=0.0).to(tl.float32)
    b_g = tl.load(grad + map_offsets(i_n, o_p, o_c, width, grad_strides), mask=m_x, other=0.0).to(tl.float32)
    b_z, _ = norm_backward(b_g, b_x, b_scale, weight, eps, o_c, m_c, C)
    b_dx = b_z * b_scale + b_constant + b_slope * (b_x - b_mean)
    tl.store(dx + map_offsets(i_n, o_p, o_c, width, dx_strides), b_dx, mask=m_x)


def attention(moments: Tensor, counts: Tensor, layers: Sequence[Tensor], statistics: Tensor) -> Tensor:
    """The scale [N, C] from the parts' moments [all parts, 2, C] and counts; fills `statistics` [N, 2, C]."""
    n, _, c = statistics.shape
    scale = empty_partials(moments, n, c)
    operands = (moments, counts, *vectors(layers), statistics, scale, moments.shape[0] // n)
    launch(attention_kernel, (n,), *operands, **constants(c, layers[0].shape[0]))
    return scale


def apply(
    x: Tensor,
    shortcut: Tensor,
    scale: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    y: Tensor,
) -> None:
    """Fill `y` with what the attention's `scale` [N, C] makes of `x`."""
    n, c, h, w = x.shape
    config = tile("cca_norm", x, channels=c)
    tiles = cdiv(h * w, config["BP"])
    norm = [None if p is None else p.contiguous() for p in (norm_weight, norm_bias)]
    operands = (x, shortcut, scale, *norm, y, h * w, w, tiles, *map(strides, (x, shortcut, y)), eps)
    launch(apply_kernel, (n * tiles,), *operands, C=c, BC=block(c), **config)


def cca_norm(
    x: Tensor,
    shortcut: Tensor,
    du0_weight: Tensor,
    du0_bias: Tensor,
    du2_weight: Tensor,
    du2_bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    y = empty_map(x, c)
    statistics = torch.empty(n, 2, c, dtype=torch.float64, device=x.device)
    if x.numel() == 0:
        return y, statistics.zero_()
    config = tile("cca_norm", x, channels=c)
    tiles = cdiv(h * w, config["BP"])
    parts = parts_of_image(n, tiles)
    moments, counts = empty_partials(x, n * parts, 2, c), empty_partials(x, n * parts)
    operands = (x, moments, counts, h * w, w, strides(x), parts)
    launch(moments_kernel, (n * parts,), *operands, C=c, BC=block(c), **config)
    scale = attention(moments, counts, (du0_weight, du0_bias, du2_weight, du2_bias), statistics)
    apply(x, shortcut, scale, norm_weight, norm_bias, eps, y)
    return y, statistics


def cca_norm_backward(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    du0_weight: Tensor,
    du0_bias: Tensor,
    du2_weight: Tensor,
    du2_bias: Tensor,
    norm_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, ...]:
    n, c, h, w = x.shape
    r = du0_weight.shape[0]
    dx = empty_map(x, c)
    norm = du2_bias if norm_weight is None else norm_weight
    parameters = (du0_weight, du0_bias, du2_weight, du2_bias, norm, norm)
    gradients = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters]
    if x.numel() == 0:
        return dx, *(g.zero_() for g in gradients)
    config = tile("cca_norm_backward", x, channels=c)
    tiles = cdiv(h * w, config["BP"])
    parts = parts_of_image(n, tiles)
    layers = vectors(parameters[:4])
    weight = None if norm_weight is None else norm_weight.contiguous()
    sizes = {"C": c, "BC": block(c)}
    scale, partials = empty_partials(x, n, c), empty_partials(x, n * parts, 3, c)
    launch(scale_kernel, (n,), statistics, *layers, scale, **sizes, R=r, BR=block(r), num_warps=1)
    operands = (grad, x, scale, weight, partials, h * w, w, strides(grad), strides(x), parts, eps)
    launch(sums_backward_kernel, (n * parts,), *operands, **sizes, **config)
    own = sum(g.numel() for g in gradients)
    rows = empty_partials(x, n, own + 3 * c)
    line = rows.shape[1]
    operands = (partials, statistics, *layers, rows, line, h * w, parts)
    launch(attention_backward_kernel, (n,), *operands, **constants(c, r))
    sum_partials(rows, gradients)
    operands = (grad, x, scale, rows[:, own:], weight, dx, line, h * w, w, tiles, *map(strides, (grad, x, dx)), eps)
    launch(apply_backward_kernel, (n * tiles,), *operands, **sizes, **config)
    return dx, *gradients
