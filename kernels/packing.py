"""Weights as the kernels with depthwise convolutions read them, written in the launch of the product in front.

    rows:   parameters [C, ...] as float32 rows of channels, one after another       (depthwise.py, alk_taps.py)
    bands:  taps as banded matrices, per channel H and the three of S [32, 16], V [16, 32]      (alk_toeplitz.py)

The product needs none of it and its successor all of it: some programs more in one launch save another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.launch import block

ROWS = tl.constexpr(0)
BANDS = tl.constexpr(1)

SIDE = tl.constexpr(16)  # of the tiles that the bands are for
HALO = tl.constexpr(8)  # 16 bytes, so that loads stay aligned
SPAN = tl.constexpr(32)  # a tile's side with its halos
MATRICES = 5  # H, the three of S, V

# A packing as constants in a row, for Triton 3.6 knows no tuples of tuples: kind, programs, C, CP, BC, FLIP, how many
# sizes, and the sizes.
FACTS = tl.constexpr(7)
MOST_SIZES = 9
WIDTH = tl.constexpr(FACTS.value + MOST_SIZES)


@triton.jit
def pack_rows(
    i_row, sources, to, PACKINGS: tl.constexpr, SIZES: tl.constexpr, COUNT: tl.constexpr,
    C: tl.constexpr, CP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """SIZES: where in PACKINGS the COUNT sizes begin."""
    o_c = tl.arange(0, BC)
    first = 0
    for i in tl.static_range(COUNT):
        if (i_row >= first) & (i_row < first + PACKINGS[SIZES + i]):
            p_w = sources[i] + o_c * PACKINGS[SIZES + i] + (i_row - first)
            tl.store(to + i_row * CP + o_c, tl.load(p_w, mask=o_c < C, other=0.0).to(tl.float32), mask=o_c < CP)
        first += PACKINGS[SIZES + i]


@triton.jit
def load_band(p_taps, o_t, i_c, T: tl.constexpr, C: tl.constexpr, FLIP: tl.constexpr):
    """Channel `i_c`'s taps at `o_t`, turned round with FLIP; 0 beyond the filter and beyond the channels."""
    o_from = T - 1 - o_t if FLIP else o_t
    return tl.load(p_taps + o_from, mask=(o_t >= 0) & (o_t < tl.where(i_c < C, T, 0)), other=0.0)


@triton.jit
def pack_bands(i_program, sources, to, T: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, FLIP: tl.constexpr):
    i_m = i_program // CP
    i_c = i_program % CP
    o_k = tl.arange(0, SPAN)
    o_j = tl.arange(0, SIDE)
    p_to = to + i_program * (SPAN * SIDE)
    if i_m == 4:
        o_v = o_k[None, :] - o_j[:, None] - HALO
        b_v = load_band(sources[0] + i_c * T, o_v + T // 2, i_c, T, C, FLIP)
        tl.store(p_to + o_j[:, None] * SPAN + o_k[None, :], b_v.to(to.dtype.element_ty))
    else:
        o_t = o_k[:, None] - o_j[None, :] - HALO
        o_to = o_k[:, None] * SIDE + o_j[None, :]
        if i_m == 0:
            b_w = load_band(sources[1] + i_c * T, o_t + T // 2, i_c, T, C, FLIP)
            tl.store(p_to + o_to, b_w.to(to.dtype.element_ty))
        else:
            i_row = 3 - i_m if FLIP else i_m - 1
            b_w = load_band(sources[2] + (i_c * 3 + i_row) * 3, o_t + 1, i_c, 3, C, FLIP)
            tl.store(p_to + o_to, b_w.to(to.dtype.element_ty))


@triton.jit
def pack(i_program, sources, destinations, PACKINGS: tl.constexpr):
    """The program's part of all packings."""
    first = 0
    for i in tl.static_range(len(PACKINGS) // WIDTH):
        if (i_program >= first) & (i_program < first + PACKINGS[i * WIDTH + 1]):
            if PACKINGS[i * WIDTH] == ROWS:
                pack_rows(
                    i_program - first, sources[i], destinations[i], PACKINGS, i * WIDTH + FACTS,
                    PACKINGS[i * WIDTH + 6], PACKINGS[i * WIDTH + 2], PACKINGS[i * WIDTH + 3], PACKINGS[i * WIDTH + 4],
                )  # fmt: skip
            else:
                pack_bands(
                    i_program - first, sources[i], destinations[i], PACKINGS[i * WIDTH + FACTS],
                    PACKINGS[i * WIDTH + 2], PACKINGS[i * WIDTH + 3], PACKINGS[i * WIDTH + 5],
                )  # fmt: skip
        first += PACKINGS[i * WIDTH + 1]


@dataclass(frozen=True)
class Packing:
    """Where packed weights go, what from, and by how many programs (`product` in products.py runs them)."""

    to: Tensor
    sources: tuple[Tensor, ...]
    kind: int
    programs: int
    sizes: tuple[int, ...]
    flip: bool = False

    @property
    def constants(self) -> tuple[int, ...]:
        """What `pack` knows of it, WIDTH numbers."""
        assert len(self.sizes) <= MOST_SIZES
        padded, channels = self.to.shape[1], self.sources[0].shape[0]
        facts = (self.kind, self.programs, channels, padded, block(padded), int(self.flip), len(self.sizes))
        return (*facts, *self.sizes, *(0,) * (MOST_SIZES - len(self.sizes)))


def rows(u: Tensor, parameters: Sequence[Tensor]) -> Packing:
    """Parameters [C, ...] as rows [elements behind C, channels of the scratch map `u`]."""
    sizes = tuple(p[0].numel() for p in parameters)
    to = torch.empty(sum(sizes), u.shape[1], dtype=torch.float32, device=u.device)
    return Packing(to, tuple(p.contiguous() for p in parameters), ROWS.value, sum(sizes), sizes)


def bands(
    u: Tensor, planes: int, vertical: Tensor, horizontal: Tensor, small: Tensor, *, flip: bool = False
) -> Packing:
    """Depthwise weights as matrices for `planes` channels, in the dtype of `u`; `flip`: those of the transposes."""
    to = torch.empty(MATRICES, planes, SPAN.value, SIDE.value, dtype=u.dtype, device=u.device)
    sources = tuple(p.contiguous() for p in (vertical, horizontal, small))
    return Packing(to, sources, BANDS.value, MATRICES * planes, (vertical.shape[2],), flip)
