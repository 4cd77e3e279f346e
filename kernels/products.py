"""Products of maps with matrices: what 1x1 convolutions and their gradients are made of.

    product:           y_j = act_j(sum_i x_i W_ji^T + bias_j + shortcut_j)          per pixel, for all outputs j at once
                       or, with grad_j:  y_j = grad_j * act_j'(sum_i x_i W_ji^T + bias_j + shortcut_j)
    weight_gradients:  dW_j = sum_p g_j^T [x_0, x_1, ...],  dbias_j = sum_p g_j

Maps are read and written where they lie: slices, several maps in place of their concatenation, any strides. A program
takes BP pixels by BN channels of every output; the sums over pixels are two-pass (partials.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from fastsr.kernels.activation import NONE, activate, derivative
from fastsr.kernels.config import tile
from fastsr.kernels.launch import MIN_DOT, block, cdiv, dot_precision, launch, strides
from fastsr.kernels.maps import map_offsets, tile_of_image
from fastsr.kernels.packing import Packing, pack
from fastsr.kernels.partials import empty_partials, sum_partials

MAX_COLUMNS = 64  # channels of a tile of the weight gradient
MAX_PARTS = 128  # rows of partial sums of the weight gradients


@triton.jit
def product_tile(
    xs,
    weights,
    biases,
    shortcuts,
    grads,
    ys,
    x_strides,
    weight_strides,
    shortcut_strides,
    grad_strides,
    y_strides,
    pixels,
    width,
    i_program,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    FORMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    i_n, o_p, m_p = tile_of_image(i_program, pixels, BP)
    o_k = tl.program_id(1) * BN + tl.arange(0, BN)
    o_c = tl.arange(0, BK)
    for j in tl.static_range(len(OUTPUTS)):
        if tl.program_id(1) * BN < OUTPUTS[j]:
            m_k = o_k < ROWS[j]  # channels beyond, if the output has any, become 0
            m_y = m_p[:, None] & (o_k < OUTPUTS[j])[None, :]
            b_y = tl.zeros([BP, BN], tl.float32)
            for i in tl.static_range(len(INPUTS)):
                w_strides = weight_strides[j * len(INPUTS) + i]
                p_w = weights[j * len(INPUTS) + i] + o_k[None, :] * w_strides[0]
                p_x = xs[i] + map_offsets(i_n, o_p, o_c, width, x_strides[i])
                for i_c in range(0, INPUTS[i], BK):
                    m_c = i_c + o_c < INPUTS[i]
                    b_x = tl.load(p_x + i_c * x_strides[i][1], mask=m_p[:, None] & m_c[None, :], other=0.0)
                    b_w = tl.load(
                        p_w + (i_c + o_c)[:, None] * w_strides[1], mask=m_c[:, None] & m_k[None, :], other=0.0
                    )
                    b_y = tl.dot(b_x, b_w.to(b_x.dtype), b_y, input_precision=PRECISION)
            if biases[j] is not None:
                b_y += tl.load(biases[j] + o_k, mask=m_k, other=0.0).to(tl.float32)[None, :]
            if shortcuts[j] is not None:
                p_s = shortcuts[j] + map_offsets(i_n, o_p, o_k, width, shortcut_strides[j])
                b_y += tl.load(p_s, mask=m_y, other=0.0).to(tl.float32)
            if grads[j] is not None:
                p_g = grads[j] + map_offsets(i_n, o_p, o_k, width, grad_strides[j])
                b_y = tl.load(p_g, mask=m_y, other=0.0).to(tl.float32) * derivative(b_y, FORMS[j])
            else:
                b_y = activate(b_y, FORMS[j])
            tl.store(ys[j] + map_offsets(i_n, o_p, o_k, width, y_strides[j]), b_y, mask=m_y)


@triton.jit
def product_kernel(
    xs,
    weights,
    biases,
    shortcuts,
    grads,
    ys,
    x_strides,
    weight_strides,
    shortcut_strides,
    grad_strides,
    y_strides,
    pixels,
    width,
    sources,
    destinations,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    FORMS: tl.constexpr,
    PRECISION: tl.constexpr,
    PACKINGS: tl.constexpr,
    PACKERS: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The first PACKERS programs pack weights for the next kernel (packing.py)."""
    if PACKERS > 0:
        if tl.program_id(0) < PACKERS:
            if tl.program_id(1) == 0:
                pack(tl.program_id(0), sources, destinations, PACKINGS)
            return
    product_tile(
        xs, weights, biases, shortcuts, grads, ys, x_strides, weight_strides, shortcut_strides, grad_strides, y_strides,
        pixels, width, tl.program_id(0) - PACKERS, INPUTS, ROWS, OUTPUTS, FORMS, PRECISION, BP, BN, BK,
    )  # fmt: skip


@triton.jit
def weight_gradient_kernel(
    gs,
    xs,
    partials,
    g_strides,
    x_strides,
    row,
    tiles,
    pixels,
    width,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIASED: tl.constexpr,
    PRECISION: tl.constexpr,
    BP: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
):
    p_part = partials + tl.program_id(0).to(tl.int64) * row
    i_block = tl.program_id(1)
    first_block = 0
    first_row = 0
    for j in tl.static_range(len(OUTPUTS)):
        first_column = 0
        for i in tl.static_range(len(INPUTS)):
            across = (INPUTS[i] + BC - 1) // BC
            blocks = across * ((OUTPUTS[j] + BK - 1) // BK)
            if (i_block >= first_block) & (i_block < first_block + blocks):
                i_k = (i_block - first_block) // across
                i_c = (i_block - first_block) % across
                o_k = i_k * BK + tl.arange(0, BK)
                o_c = i_c * BC + tl.arange(0, BC)
                m_k = o_k < OUTPUTS[j]
                m_c = o_c < INPUTS[i]
                b_dw = tl.zeros([BK, BC], tl.float32)
                b_db = tl.zeros([BK], tl.float32)
                for i_tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
                    i_n, o_p, m_p = tile_of_image(i_tile, pixels, BP)
                    p_g = gs[j] + map_offsets(i_n, o_p, o_k, width, g_strides[j])
                    p_x = xs[i] + map_offsets(i_n, o_p, o_c, width, x_strides[i])
                    b_g = tl.load(p_g, mask=m_p[:, None] & m_k[None, :], other=0.0)
                    b_x = tl.load(p_x, mask=m_p[:, None] & m_c[None, :], other=0.0)
                    b_dw = tl.dot(tl.trans(b_g), b_x, b_dw, input_precision=PRECISION)
                    if BIASED[j] and i == 0:
                        b_db += tl.sum(b_g.to(tl.float32), 0)
                p_dw = p_part + first_row + o_k[:, None] * COLUMNS + first_column + o_c[None, :]
                tl.store(p_dw, b_dw, mask=m_k[:, None] & m_c[None, :])
                if BIASED[j] and i == 0:
                    if i_c == 0:
                        tl.store(p_part + first_row + OUTPUTS[j] * COLUMNS + o_k, b_db, mask=m_k)
            first_block += blocks
            first_column += INPUTS[i]
        first_row += OUTPUTS[j] * COLUMNS + (OUTPUTS[j] if BIASED[j] else 0)


@dataclass(frozen=True)
class Output:
    """One output of `product`: where it goes, and what makes it.

    `weights` holds one [K, C_i] matrix per input, in any strides; `y` may be a scratch map of more than K channels
    (maps.py). With `grad` the result is the gradient in front of the activation instead of the activation's value.
    """

    y: Tensor
    weights: Sequence[Tensor]
    bias: Tensor | None = None
    form: int = NONE.value
    shortcut: Tensor | None = None
    grad: Tensor | None = None


def matrix(weight: Tensor) -> Tensor:
    """A 1x1 convolution's weight [K, C, 1, 1] as [K, C]."""
    return weight[:, :, 0, 0]


def product(xs: Sequence[Tensor], outputs: Sequence[Output], packings: Sequence[Packing] = ()) -> None:
    """Fill every output's `y`, and what `packings` say; all maps have the size of the first input."""
    first = xs[0]
    n, _, h, w = first.shape
    inputs, channels = tuple(x.shape[1] for x in xs), tuple(o.y.shape[1] for o in outputs)
    shape = {"inputs": sum(inputs), "outputs": max(channels), "bytes": first.element_size(), "maps": len(outputs)}
    config = tile("product", first, **shape)
    config |= {"BN": block(max(channels), MIN_DOT, config["BN"]), "BK": block(max(inputs), MIN_DOT, config["BK"])}
    matrices = tuple(m for o in outputs for m in o.weights)
    shortcuts, grads = tuple(o.shortcut for o in outputs), tuple(o.grad for o in outputs)
    packers = sum(p.programs for p in packings)
    launch(
        product_kernel,
        (packers + n * cdiv(h * w, config["BP"]), cdiv(max(channels), config["BN"])),
        tuple(xs),
        matrices,
        tuple(None if o.bias is None else o.bias.contiguous() for o in outputs),
        shortcuts,
        grads,
        tuple(o.y for o in outputs),
        tuple(strides(x) for x in xs),
        tuple(m.stride() for m in matrices),
        # A map that is not there has the strides of y: Triton 3.6 cannot tell None from a tuple within a tuple.
        tuple(strides(o.y if o.shortcut is None else o.shortcut) for o in outputs),
        tuple(strides(o.y if o.grad is None else o.grad) for o in outputs),
        tuple(strides(o.y) for o in outputs),
        h * w,
        w,
        tuple(p.sources for p in packings),
        tuple(p.to for p in packings),
        INPUTS=inputs,
        ROWS=tuple(o.weights[0].shape[0] for o in outputs),
        OUTPUTS=channels,
        FORMS=tuple(o.form for o in outputs),
        PRECISION=dot_precision(first),
        PACKINGS=tuple(number for p in packings for number in p.constants),
        PACKERS=packers,
        **config,
    )


def weight_gradients(
    gs: Sequence[Tensor], xs: Sequence[Tensor], d_weights: Sequence[Tensor], d_biases: Sequence[Tensor | None]
) -> None:
    """Fill `d_weights` (per map of `gs`, contiguous [K, all channels of `xs`, 1, 1]) and the biases that are given."""
    first = xs[0]
    n, _, h, w = first.shape
    inputs, channels = tuple(x.shape[1] for x in xs), tuple(g.shape[1] for g in gs)
    config = tile("weight_gradient", first, inputs=max(inputs), outputs=max(channels), bytes=first.element_size())
    rows, columns = (block(max(size), MIN_DOT, MAX_COLUMNS) for size in (channels, inputs))
    tiles = n * cdiv(h * w, config["BP"])
    targets = [t for pair in zip(d_weights, d_biases, strict=True) for t in pair if t is not None]
    partials = empty_partials(first, min(tiles, MAX_PARTS), sum(t.numel() for t in targets))
    blocks = sum(cdiv(c, columns) for c in inputs) * sum(cdiv(k, rows) for k in channels)
    launch(
        weight_gradient_kernel,
        (partials.shape[0], blocks),
        tuple(gs),
        tuple(xs),
        partials,
        tuple(strides(g) for g in gs),
        tuple(strides(x) for x in xs),
        partials.shape[1],
        tiles,
        h * w,
        w,
        OUTPUTS=channels,
        INPUTS=inputs,
        COLUMNS=sum(inputs),
        BIASED=tuple(b is not None for b in d_biases),
        PRECISION=dot_precision(first),
        BK=rows,
        BC=columns,
        **config,
    )
    sum_partials(partials, targets)
