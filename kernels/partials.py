"""Sums over programs, in a fixed order and without atomics.

    outputs = partials.sum(0).split(sizes)

A kernel whose sums run over pixels writes one row of float32 partial sums per program, over a fixed grid that does not
depend on the device; this kernel adds the rows up, so that repeated runs are bit-equal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.config import tile
from fastsr.kernels.launch import block, cdiv, launch


@triton.jit
def sum_kernel(partials, outputs, rows, row_stride, SIZES: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr):
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    start = 0
    for i in tl.static_range(len(SIZES)):
        m_m = o_m < SIZES[i]
        if tl.program_id(0) * BM < SIZES[i]:
            b_sum = tl.zeros([BR, BM], tl.float32)
            for i_r in range(0, rows, BR):
                o_r = i_r + tl.arange(0, BR)
                p_row = partials + o_r.to(tl.int64)[:, None] * row_stride + start + o_m[None, :]
                b_sum += tl.load(p_row, mask=(o_r < rows)[:, None] & m_m[None, :], other=0.0)
            tl.store(outputs[i] + o_m, tl.sum(b_sum, 0), mask=m_m)
        start += SIZES[i]


def sum_partials(partials: Tensor, outputs: list[Tensor]) -> None:
    """Fill the contiguous `outputs`, of any dtype, with the sum over the rows of `partials` [rows, all elements]."""
    sizes = tuple(output.numel() for output in outputs)
    rows, row = partials.shape[0], partials[0].numel()
    config = tile("sum_partials", partials, rows=rows)
    config["BR"] = block(rows, most=config["BR"])
    grid = (cdiv(max(sizes), config["BM"]),)
    launch(sum_kernel, grid, partials, tuple(outputs), rows, row, SIZES=sizes, **config)


def empty_partials(x: Tensor, *shape: int) -> Tensor:
    """Room for float32 partial sums beside `x`."""
    return torch.empty(shape, dtype=torch.float32, device=x.device)
