"""The channel attention of cca_norm: one small program per image, in float64.

    mean = sum_i count_i mean_i / count;  variance = sum_i (squares_i + count_i (mean_i - mean)^2) / count
    contrast = sqrt(variance) + mean
    scale = sigmoid(du2 relu(du0 contrast + b0) + b2);  backward from the parts' sums of dscale

The parts are added up in a fixed order, BQ at a time: one after another, each would wait for memory.
float64 because its gradients are differences of sums over all channels, and because it costs nothing: an image has as
many of these values as a pixel has.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastsr.kernels.launch import block, cdiv

MAX_PARTS = 512  # ranges of pixels that the sums of all images are divided into
MAX_AT_ONCE = 1024  # values of the parts that a program holds at once


@triton.jit
def layers(b_contrast, w0, b0, w2, b2, C: tl.constexpr, R: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr):
    """The attention's two layers in float64: hidden [BR] behind the ReLU, scale [BC], and both weights."""
    o_c = tl.arange(0, BC)
    o_r = tl.arange(0, BR)
    m_w = (o_r < R)[:, None] & (o_c < C)[None, :]
    b_w0 = tl.load(w0 + o_r[:, None] * C + o_c[None, :], mask=m_w, other=0.0).to(tl.float64)
    b_w2 = tl.load(w2 + o_c[None, :] * R + o_r[:, None], mask=m_w, other=0.0).to(tl.float64)
    b_hidden = tl.sum(b_w0 * b_contrast[None, :], 1) + tl.load(b0 + o_r, mask=o_r < R, other=0.0).to(tl.float64)
    b_hidden = tl.maximum(b_hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)
    b_v = tl.sum(b_w2 * b_hidden[:, None], 0) + tl.load(b2 + o_c, mask=o_c < C, other=0.0).to(tl.float64)
    return b_hidden, tl.sigmoid(b_v), b_w0, b_w2


@triton.jit
def parts_at(rows, i_n, i, o_c, parts, C: tl.constexpr, ROWS: tl.constexpr, BQ: tl.constexpr):
    """Parts i to i + BQ of an image, which of their rows of C channels exist, and where the first row of each is."""
    o_q = i + tl.arange(0, BQ)
    p_part = rows + (i_n * parts + o_q)[:, None] * (ROWS * C) + o_c[None, :]
    return o_q, (o_q < parts)[:, None] & (o_c < C)[None, :], p_part


@triton.jit
def moments_of(statistics, i_n, o_c, C: tl.constexpr):
    """Mean and variance of the image's channels, in float64."""
    b_mean = tl.load(statistics + i_n * (2 * C) + o_c, mask=o_c < C, other=0.0)
    return b_mean, tl.load(statistics + i_n * (2 * C) + C + o_c, mask=o_c < C, other=0.0)


@triton.jit
def store_moments(b_count, b_mean, b_squares, moments, counts, i_part, o_c, C: tl.constexpr):
    """A part's moments from those of its places: how many pixels each had [BP], means and squares [BP, BC]."""
    total = tl.sum(b_count)
    b_count = b_count[:, None]
    b_all = tl.sum(b_mean * b_count, 0) / total
    b_d = b_mean - b_all[None, :]
    b_rest = tl.sum(b_d * b_count, 0) / total  # what rounding the mean lost
    b_d -= b_rest[None, :]
    p_part = moments + i_part * (2 * C) + o_c
    tl.store(p_part, b_all + b_rest, mask=o_c < C)
    tl.store(p_part + C, tl.sum(b_squares + b_d * b_d * b_count, 0), mask=o_c < C)
    tl.store(counts + i_part, total)


@triton.jit
def attention_kernel(
    moments,
    counts,
    w0,
    b0,
    w2,
    b2,
    statistics,
    scale,
    parts,
    C: tl.constexpr,
    R: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
    BQ: tl.constexpr,
):
    i_n = tl.program_id(0)
    o_c = tl.arange(0, BC)
    b_total = tl.zeros([BQ], tl.float64)
    b_sums = tl.zeros([BQ, BC], tl.float64)
    for i in range(0, parts, BQ):
        o_q, m_q, p_part = parts_at(moments, i_n, i, o_c, parts, C, 2, BQ)
        b_count = tl.load(counts + i_n * parts + o_q, mask=o_q < parts, other=0.0).to(tl.float64)
        b_sums += tl.load(p_part, mask=m_q, other=0.0).to(tl.float64) * b_count[:, None]
        b_total += b_count
    total = tl.sum(b_total)
    b_mean = tl.sum(b_sums, 0) / total
    b_squares = tl.zeros([BQ, BC], tl.float64)
    for i in range(0, parts, BQ):
        o_q, m_q, p_part = parts_at(moments, i_n, i, o_c, parts, C, 2, BQ)
        b_count = tl.load(counts + i_n * parts + o_q, mask=o_q < parts, other=0.0).to(tl.float64)
        b_d = tl.load(p_part, mask=m_q, other=0.0).to(tl.float64) - b_mean[None, :]
        b_squares += tl.load(p_part + C, mask=m_q, other=0.0).to(tl.float64) + b_d * b_d * b_count[:, None]
    b_variance = tl.sum(b_squares, 0) / total
    _, b_scale, _, _ = layers(tl.sqrt(b_variance) + b_mean, w0, b0, w2, b2, C, R, BC, BR)
    tl.store(statistics + i_n * (2 * C) + o_c, b_mean, mask=o_c < C)
    tl.store(statistics + i_n * (2 * C) + C + o_c, b_variance, mask=o_c < C)
    tl.store(scale + i_n * C + o_c, b_scale.to(tl.float32), mask=o_c < C)


@triton.jit
def scale_kernel(
    statistics, w0, b0, w2, b2, scale, C: tl.constexpr, R: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr
):
    i_n = tl.program_id(0)
    o_c = tl.arange(0, BC)
    b_mean, b_variance = moments_of(statistics, i_n, o_c, C)
    _, b_scale, _, _ = layers(tl.sqrt(b_variance) + b_mean, w0, b0, w2, b2, C, R, BC, BR)
    tl.store(scale + i_n * C + o_c, b_scale.to(tl.float32), mask=o_c < C)


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
    BQ: tl.constexpr,
):
    i_n = tl.program_id(0)
    o_c = tl.arange(0, BC)
    o_r = tl.arange(0, BR)
    m_c = o_c < C
    b_dscale = tl.zeros([BQ, BC], tl.float64)
    b_dw = tl.zeros([BQ, BC], tl.float64)
    b_db = tl.zeros([BQ, BC], tl.float64)
    for i in range(0, parts, BQ):
        _, m_q, p_part = parts_at(partials, i_n, i, o_c, parts, C, 3, BQ)
        b_dscale += tl.load(p_part, mask=m_q, other=0.0)
        b_dw += tl.load(p_part + C, mask=m_q, other=0.0)
        b_db += tl.load(p_part + 2 * C, mask=m_q, other=0.0)
    b_dscale = tl.sum(b_dscale, 0)
    b_dw = tl.sum(b_dw, 0)
    b_db = tl.sum(b_db, 0)
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


def parts_of_image(images: int, tiles: int) -> int:
    return max(1, min(tiles, MAX_PARTS // images))


def constants(channels: int, hidden: int) -> dict[str, int]:
    """Of the kernels that add up the parts."""
    size = block(channels)
    at_once = block(cdiv(MAX_AT_ONCE, size), most=16)
    return {"C": channels, "BC": size, "R": hidden, "BR": block(hidden), "BQ": at_once, "num_warps": 4, "num_stages": 1}
