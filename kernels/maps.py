"""Addresses of pixels, and maps that live within one operator call.

Positions within an image are 32 bits wide, everything from the image's index on 64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.launch import cdiv

CHANNEL_STEP = 16  # of scratch maps: their pixels begin on 32 bytes at least


def scratch_map(x: Tensor, channels: int) -> Tensor:
    """A channels-last map like `x` for use between kernels; its channels are padded, and padding is written as 0.

    So every load and store is 128 bits wide, whatever the number of channels.
    """
    n, _, h, w = x.shape
    padded = CHANNEL_STEP * cdiv(channels, CHANNEL_STEP)
    return torch.empty(n, h, w, padded, dtype=x.dtype, device=x.device).permute(0, 3, 1, 2)


@triton.jit
def tile_of_image(i_tile, pixels, BP: tl.constexpr):
    """Tile `i_tile` of all images as (image, [BP] pixels within it, mask); a tile lies within one image."""
    tiles = tl.cdiv(pixels, BP)
    o_p = (i_tile % tiles) * BP + tl.arange(0, BP)
    return i_tile // tiles, o_p, o_p < pixels


@triton.jit
def pixel_offsets(i_n, o_p, width, strides):
    """Offsets of the pixels `o_p` of image `i_n` in a map with `strides` (n, c, h, w)."""
    i_h = (o_p // width).to(tl.int64)
    i_w = (o_p % width).to(tl.int64)
    return i_n.to(tl.int64) * strides[0] + i_h * strides[2] + i_w * strides[3]


@triton.jit
def map_offsets(i_n, o_p, o_c, width, strides):
    """[BP, BC] offsets of pixels `o_p` and channels `o_c`."""
    return pixel_offsets(i_n, o_p, width, strides)[:, None] + (o_c.to(tl.int64) * strides[1])[None, :]
