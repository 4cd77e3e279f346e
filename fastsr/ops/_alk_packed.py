"""Sizes of packed ALK weights, for fakes: as csrc/cuda/alk_launch.cuh and alk_condense_launch.cuh compute them."""

from __future__ import annotations

import torch


def _blocks(channels: int) -> int:
    return (channels + 31) // 32


def packed_bytes(
    dtype: torch.dtype,
    c: int,
    k: int,
    taps: int,
    d: int = 0,
    keeps: bool = False,
    condenses: tuple[int, int] | None = None,
) -> int:
    """Those of an ALKConv for maps of `dtype`.

    Args:
        dtype: float32, float16 or bfloat16.
        c, k: channels in and out.
        taps: of the asymmetric filters.
        d: channels that a stage distils.
        keeps: with what the backward reads.
        condenses: for `alk_condense`, channels of a distilled map and of the result.
    """
    side = max(24, (taps + 6) // 8 * 8 + 16)
    if dtype == torch.float32:  # for FMA, and for TF32
        orders = [(1024, (2 * (side - 15) + 12) // 4 * 4), (1024, 2 * side + 72)]
    else:
        orders = [(512, (side // 8 * 2 + 8) // 4 * 128)]
    products = ((k + 63) // 64 * 2 + _blocks(d)) * _blocks(c)
    vectors = 32 * (5 * _blocks(k) + _blocks(d))
    filters = k
    if keeps:
        products += _blocks(c) * _blocks((k + 7) // 8 * 8 + d)
        filters *= 2
    if condenses is not None:
        of_map, outputs = condenses
        products += 2 * (3 * _blocks(of_map) + _blocks(k)) + _blocks(outputs)
        vectors += 3 * 32
    return 4 * sum(product * products + filters * taps_of_filter + vectors for product, taps_of_filter in orders)
