"""Addresses of pixels. Positions within an image are 32 bits wide, everything from the image's index on 64."""

from __future__ import annotations

import triton
import triton.language as tl


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
