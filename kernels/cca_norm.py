"""cca_norm: contrast-aware channel attention, pixel norm and residual.

    mean, variance over H x W per image and channel;  contrast = sqrt(variance) + mean
    scale = sigmoid(du2 relu(du0 contrast + b0) + b2);  y = normalise(x * scale) * norm_weight + norm_bias + shortcut

    dz = normalise_backward(grad * norm_weight)  (or grad, without a norm);  dscale = sum_p(dz x)
    dcontrast from dscale through the two layers
    dx = dz scale + dcontrast (1 + (x - mean) / sqrt(variance)) / (H W)

Forward: partial moments, the attention, the rest. Moments are taken about each tile's own mean and merged by Chan's
rule in a fixed order, all in float32: no sum of squares cancels, none overflows. Backward: partial sums, the
attention's gradient, the rest; it computes the norm twice, which costs less than to write and read its gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.config import tile
from fastsr.kernels.launch import block, cdiv, launch, strides
from fastsr.kernels.maps import map_offsets
from fastsr.kernels.partials import empty_partials, sum_partials
from fastsr.kernels.pixel_norm import normalise, normalise_backward
from fastsr.ops._define import empty_map

MAX_PARTS = 512  # ranges of pixels that the sums of all images are divided into


@triton.jit
def moments_kernel(x, moments, pixels, width, x_strides, parts, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    i_n = tl.program_id(0) // parts
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    count = 0.0
    b_mean = tl.zeros([BC], tl.float32)
    b_squares = tl.zeros([BC], tl.float32)
    for i_p in range((tl.program_id(0) % parts) * BP, pixels, parts * BP):
        o_p = i_p + tl.arange(0, BP)
        m_x = (o_p < pixels)[:, None] & m_c
        b_x = tl.load(x + map_offsets(i_n, o_p, o_c, width, x_strides), mask=m_x, other=0.0).to(tl.float32)
        more = tl.minimum(pixels - i_p, BP).to(tl.float32)
        b_here = tl.sum(b_x, 0) / more
        b_d = tl.where(m_x, b_x - b_here[None, :], 0.0)
        b_here += tl.sum(b_d, 0) / more  # what rounding the mean lost
        b_delta = b_here - b_mean
        share = more / (count + more)
        b_mean += b_delta * share
        b_squares += tl.sum(b_d * b_d, 0) + b_delta * b_delta * count * share
        count += more
    p_part = moments + tl.program_id(0) * (2 * C) + o_c
    tl.store(p_part, b_mean, mask=o_c < C)
    tl.store(p_part + C, b_squares, mask=o_c < C)


@triton.jit
def layers(b_contrast, w0, b0, w2, b2, C: tl.constexpr, R: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr):
    """The attention's two layers: hidden [BR] behind the ReLU, scale [BC], and both weights."""
    o_c = tl.arange(0, BC)
    o_r = tl.arange(0, BR)
    m_w = (o_r < R)[:, None] & (o_c < C)[None, :]
    b_w0 = tl.load(w0 + o_r[:, None] * C + o_c[None, :], mask=m_w, other=0.0).to(tl.float32)
    b_w2 = tl.load(w2 + o_c[None, :] * R + o_r[:, None], mask=m_w, other=0.0).to(tl.float32)
    b_hidden = tl.sum(b_w0 * b_contrast[None, :], 1) + tl.load(b0 + o_r, mask=o_r < R, other=0.0).to(tl.float32)
    b_hidden = tl.maximum(b_hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)
    b_v = tl.sum(b_w2 * b_hidden[:, None], 0) + tl.load(b2 + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    return b_hidden, tl.sigmoid(b_v), b_w0, b_w2


@triton.jit
def moments_of(statistics, i_n, o_c, C: tl.constexpr):
    b_mean = tl.load(statistics + i_n * (2 * C) + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    b_variance = tl.load(statistics + i_n * (2 * C) + C + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    return b_mean, b_variance


@triton.jit
def attention_kernel(
    moments,
    w0,
    b0,
    w2,
    b2,
    statistics,
    scale,
    pixels,
    parts,
    C: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
):
    i_n = tl.program_id(0)
    o_c = tl.arange(0, BC)
    count = 0.0
    b_mean = tl.zeros([BC], tl.float32)
    b_squares = tl.zeros([BC], tl.float32)
    for i_part in range(parts):
        # Part i has the tiles i, i + parts, ...; only the image's last tile is not full.
        p_part = moments + (i_n * parts + i_part) * (2 * C) + o_c
        tiles = tl.cdiv(pixels, BP)
        own = tl.cdiv(tiles - i_part, parts)
        missing = tl.where((tiles - 1) % parts == i_part, tiles * BP - pixels, 0)
        more = (own * BP - missing).to(tl.float32)
        b_delta = tl.load(p_part, mask=o_c < C, other=0.0) - b_mean
        share = more / (count + more)
        b_mean += b_delta * share
        b_squares += tl.load(p_part + C, mask=o_c < C, other=0.0) + b_delta * b_delta * count * share
        count += more
    b_variance = b_squares / count
    _, b_scale, _, _ = layers(tl.sqrt(b_variance) + b_mean, w0, b0, w2, b2, C, R, BC, BR)
    tl.store(statistics + i_n * (2 * C) + o_c, b_mean, mask=o_c < C)
    tl.store(statistics + i_n * (2 * C) + C + o_c, b_variance, mask=o_c < C)
    tl.store(scale + i_n * C + o_c, b_scale, mask=o_c < C)


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
    statistics,
    w0,
    b0,
    w2,
    b2,
    weight,
    partials,
    pixels,
    width,
    grad_strides,
    x_strides,
    parts,
    eps,
    C: tl.constexpr,
    R: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    i_n = tl.program_id(0) // parts
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    b_mean, b_variance = moments_of(statistics, i_n, o_c, C)
    _, b_scale, _, _ = layers(tl.sqrt(b_variance) + b_mean, w0, b0, w2, b2, C, R, BC, BR)
    b_scale = b_scale[None, :]
    b_dscale = tl.zeros([BC], tl.float32)
    b_dw = tl.zeros([BC], tl.float32)
    b_db = tl.zeros([BC], tl.float32)
    for i_p in range((tl.program_id(0) % parts) * BP, pixels, parts * BP):
        o_p = i_p + tl.arange(0, BP)
        m_x = (o_p < pixels)[:, None] & m_c
        b_x = tl.load(x + map_offsets(i_n, o_p, o_c, width, x_strides), mask=m_x, other=0.0).to(tl.float32)
        b_g = tl.load(grad + map_offsets(i_n, o_p, o_c, width, grad_strides), mask=m_x, other=0.0).to(tl.float32)
        b_z, b_xhat = norm_backward(b_g, b_x, b_scale, weight, eps, o_c, m_c, C)
        b_dscale += tl.sum(b_z * b_x, 0)
        b_dw += tl.sum(b_g * b_xhat, 0)
        b_db += tl.sum(b_g, 0)
    p_part = partials + tl.program_id(0) * (3 * C) + o_c
    tl.store(p_part, b_dscale, mask=o_c < C)
    tl.store(p_part + C, b_dw, mask=o_c < C)
    tl.store(p_part + 2 * C, b_db, mask=o_c < C)


@triton.jit
def attention_backward_kernel(
    partials,
    statistics,
    w0,
    b0,
    w2,
    b2,
    rows,
    line,
    pixels,
    parts,
    C: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    i_n = tl.program_id(0)
    o_c = tl.arange(0, BC)
    o_r = tl.arange(0, BR)
    m_c = o_c < C
    b_dscale = tl.zeros([BC], tl.float32)
    b_dw = tl.zeros([BC], tl.float32)
    b_db = tl.zeros([BC], tl.float32)
    for i_part in range(parts):
        p_part = partials + (i_n * parts + i_part) * (3 * C) + o_c
        b_dscale += tl.load(p_part, mask=m_c, other=0.0)
        b_dw += tl.load(p_part + C, mask=m_c, other=0.0)
        b_db += tl.load(p_part + 2 * C, mask=m_c, other=0.0)
    b_mean, b_variance = moments_of(statistics, i_n, o_c, C)
    b_deviation = tl.sqrt(b_variance)
    b_contrast = b_deviation + b_mean
    b_hidden, b_scale, b_w0, b_w2 = layers(b_contrast, w0, b0, w2, b2, C, R, BC, BR)
    b_dv = b_dscale * b_scale * (1.0 - b_scale)
    b_dhidden = tl.where(b_hidden > 0.0, tl.sum(b_w2 * b_dv[None, :], 1), 0.0)
    b_dcontrast = tl.sum(b_w0 * b_dhidden[:, None], 0) / pixels
    # One line per image: dw0, db0, dw2, db2, dnorm_weight, dnorm_bias, and what the last pass adds to dx.
    p_line = rows + i_n.to(tl.int64) * line
    m_w = (o_r < R)[:, None] & m_c[None, :]
    tl.store(p_line + o_r[:, None] * C + o_c[None, :], b_dhidden[:, None] * b_contrast[None, :], mask=m_w)
    tl.store(p_line + R * C + o_r, b_dhidden, mask=o_r < R)
    p_line += R * C + R
    tl.store(p_line + o_c[None, :] * R + o_r[:, None], b_dv[None, :] * b_hidden[:, None], mask=m_w)
    p_line += R * C
    tl.store(p_line + o_c, b_dv, mask=m_c)
    tl.store(p_line + C + o_c, b_dw, mask=m_c)
    tl.store(p_line + 2 * C + o_c, b_db, mask=m_c)
    tl.store(p_line + 3 * C + o_c, b_dcontrast, mask=m_c)
    # The deviation of a constant map has gradient 0.
    b_slope = tl.where(b_variance > 0.0, b_dcontrast / tl.where(b_variance > 0.0, b_deviation, 1.0), 0.0)
    tl.store(p_line + 4 * C + o_c, b_slope, mask=m_c)
    tl.store(p_line + 5 * C + o_c, b_mean, mask=m_c)
    tl.store(p_line + 6 * C + o_c, b_scale, mask=m_c)


@triton.jit
def apply_backward_kernel(
    grad,
    x,
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
    b_scale = tl.load(p_terms + 3 * C, mask=o_c < C, other=0.0)[None, :]
    b_x = tl.load(x + map_offsets(i_n, o_p, o_c, width, x_strides), mask=m_x, other=0.0).to(tl.float32)
    b_g = tl.load(grad + map_offsets(i_n, o_p, o_c, width, grad_strides), mask=m_x, other=0.0).to(tl.float32)
    b_z, _ = norm_backward(b_g, b_x, b_scale, weight, eps, o_c, m_c, C)
    b_dx = b_z * b_scale + b_constant + b_slope * (b_x - b_mean)
    tl.store(dx + map_offsets(i_n, o_p, o_c, width, dx_strides), b_dx, mask=m_x)


def parts_of_image(images: int, tiles: int) -> int:
    return max(1, min(tiles, MAX_PARTS // images))


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
    moments, scale = empty_partials(x, n * parts, 2, c), empty_partials(x, n, c)
    sizes = {"C": c, "BC": block(c)}
    launch(moments_kernel, (n * parts,), x, moments, h * w, w, strides(x), parts, **sizes, **config)
    layers = tuple(p.contiguous() for p in (du0_weight, du0_bias, du2_weight, du2_bias))
    r = du0_weight.shape[0]
    attention = {**sizes, "R": r, "BR": block(r), "BP": config["BP"], "num_warps": 1, "num_stages": 1}
    launch(attention_kernel, (n,), moments, *layers, statistics, scale, h * w, parts, **attention)
    launch(
        apply_kernel,
        (n * tiles,),
        x,
        shortcut,
        scale,
        None if norm_weight is None else norm_weight.contiguous(),
        None if norm_bias is None else norm_bias.contiguous(),
        y,
        h * w,
        w,
        tiles,
        strides(x),
        strides(shortcut),
        strides(y),
        eps,
        **sizes,
        **config,
    )
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
    layers = tuple(p.contiguous() for p in parameters[:4])
    weight = None if norm_weight is None else norm_weight.contiguous()
    sizes, attention = {"C": c, "BC": block(c)}, {"R": r, "BR": block(r), "num_warps": 1, "num_stages": 1}
    partials = empty_partials(x, n * parts, 3, c)
    operands = (grad, x, statistics, *layers, weight, partials, h * w, w, strides(grad), strides(x), parts, eps)
    launch(sums_backward_kernel, (n * parts,), *operands, R=r, BR=block(r), **sizes, **config)
    own = sum(g.numel() for g in gradients)
    rows = empty_partials(x, n, own + 4 * c)
    line = rows.shape[1]
    operands = (partials, statistics, *layers, rows, line, h * w, parts)
    launch(attention_backward_kernel, (n,), *operands, **sizes, **attention)
    sum_partials(rows, gradients)
    operands = (grad, x, rows[:, own:], weight, dx, line, h * w, w, tiles, strides(grad), strides(x), strides(dx), eps)
    launch(apply_backward_kernel, (n * tiles,), *operands, **sizes, **config)
    return dx, *gradients
