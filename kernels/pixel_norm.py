"""pixel_norm: layer normalisation over the channels of each pixel.

d = x - mean_c(x);  r = rsqrt(mean_c(d^2) + eps);  xhat = d r
y = xhat * weight + bias
h = grad * weight
dx = r (h - mean_c(h) - xhat mean_c(h xhat));  dweight = sum_p(grad xhat);  dbias = sum_p(grad)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.config import tile
from fastsr.kernels.launch import block, cdiv, launch, strides
from fastsr.kernels.maps import map_offsets, tile_of_image
from fastsr.kernels.partials import empty_partials, sum_partials

MAX_PARTS = 512  # rows of partial sums of the weight gradients


@triton.jit
def normalise(b_x, m_c, eps, C: tl.constexpr):
    """xhat and rsqrt(variance + eps) of [BP, BC] float32 values that are 0 outside the mask `m_c` [1, BC]."""
    b_d = tl.where(m_c, b_x - tl.sum(b_x, 1)[:, None] * (1.0 / C), 0.0)
    # The mean of the deviations takes back what rounding the mean lost: it matters where the mean is large.
    b_d = tl.where(m_c, b_d - tl.sum(b_d, 1)[:, None] * (1.0 / C), 0.0)
    b_r = tl.math.rsqrt(tl.sum(b_d * b_d, 1) * (1.0 / C) + eps)[:, None]
    return b_d * b_r, b_r


@triton.jit
def normalise_backward(b_h, b_xhat, b_r, C: tl.constexpr):
    """The gradient in front of `normalise`, from `b_h` behind it; all are 0 outside the channels' mask."""
    b_mean = tl.sum(b_h, 1)[:, None] * (1.0 / C)
    b_slope = tl.sum(b_h * b_xhat, 1)[:, None] * (1.0 / C)
    return b_r * (b_h - b_mean - b_xhat * b_slope)


@triton.jit
def forward_kernel(
    x, weight, bias, y, pixels, width, x_strides, y_strides, eps, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    i_n, o_p, m_p = tile_of_image(tl.program_id(0), pixels, BP)
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    m_x = m_p[:, None] & m_c
    b_x = tl.load(x + map_offsets(i_n, o_p, o_c, width, x_strides), mask=m_x, other=0.0).to(tl.float32)
    b_xhat, _ = normalise(b_x, m_c, eps, C)
    b_w = tl.load(weight + o_c, mask=o_c < C, other=0.0).to(tl.float32)[None, :]
    b_b = tl.load(bias + o_c, mask=o_c < C, other=0.0).to(tl.float32)[None, :]
    tl.store(y + map_offsets(i_n, o_p, o_c, width, y_strides), b_xhat * b_w + b_b, mask=m_x)


@triton.jit
def backward_kernel(
    grad,
    x,
    weight,
    dx,
    partials,
    tiles,
    pixels,
    width,
    grad_strides,
    x_strides,
    dx_strides,
    eps,
    C: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    o_c = tl.arange(0, BC)
    m_c = (o_c < C)[None, :]
    b_w = tl.load(weight + o_c, mask=o_c < C, other=0.0).to(tl.float32)[None, :]
    b_dw = tl.zeros([BC], tl.float32)
    b_db = tl.zeros([BC], tl.float32)
    for i_tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        i_n, o_p, m_p = tile_of_image(i_tile, pixels, BP)
        m_x = m_p[:, None] & m_c
        b_x = tl.load(x + map_offsets(i_n, o_p, o_c, width, x_strides), mask=m_x, other=0.0).to(tl.float32)
        b_g = tl.load(grad + map_offsets(i_n, o_p, o_c, width, grad_strides), mask=m_x, other=0.0).to(tl.float32)
        b_xhat, b_r = normalise(b_x, m_c, eps, C)
        b_dx = normalise_backward(b_g * b_w, b_xhat, b_r, C)
        tl.store(dx + map_offsets(i_n, o_p, o_c, width, dx_strides), b_dx, mask=m_x)
        b_dw += tl.sum(b_g * b_xhat, 0)
        b_db += tl.sum(b_g, 0)
    p_part = partials + tl.program_id(0) * (2 * C) + o_c
    tl.store(p_part, b_dw, mask=o_c < C)
    tl.store(p_part + C, b_db, mask=o_c < C)


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    n, c, h, w = x.shape
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    config = tile("pixel_norm", x, channels=c)
    grid = (n * cdiv(h * w, config["BP"]),)
    operands = (x, weight.contiguous(), bias.contiguous(), y, h * w, w, strides(x), strides(y), eps)
    launch(forward_kernel, grid, *operands, C=c, BC=block(c), **config)
    return y


def pixel_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    dx = torch.empty_like(x)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(weight)
    if x.numel() == 0:
        return dx, d_weight.zero_(), d_bias.zero_()
    config = tile("pixel_norm_backward", x, channels=c)
    tiles = n * cdiv(h * w, config["BP"])
    partials = empty_partials(x, min(tiles, MAX_PARTS), 2, c)
    operands = (grad, x, weight.contiguous(), dx, partials, tiles, h * w, w, strides(grad), strides(x), strides(dx))
    launch(backward_kernel, (partials.shape[0],), *operands, eps, C=c, BC=block(c), **config)
    sum_partials(partials, [d_weight, d_bias])
    return dx, d_weight, d_bias
