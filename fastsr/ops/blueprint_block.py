"""blueprint_block: BSRN's block up to its ESA in one pass over the map.

A fusion, not an operator with backends to choose: it runs where `bsconv` and `pointwise` would run in C++ on the CPU in
float32, without autograd. Elsewhere its parts run one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsr._dispatch import select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._define import define_inference, empty_map, records, takes_packed
from fastsr.ops.bsconv import bsconv
from fastsr.ops.bsconv_stage import bsconv_stage
from fastsr.ops.pointwise import pointwise

_OP = "blueprint_block"
_STAGES = 3
_STAGE = ("d_weight", "d_bias", "pw_weight", "dw_weight", "dw_bias")


def _fake(x: Tensor, weights: list[Tensor]) -> Tensor:
    return empty_map(x, weights[-1].shape[0])


def _fake_packed(x: Tensor, packed: list[Tensor], channels: int) -> Tensor:
    return empty_map(x, channels)


define_inference(_OP, "(Tensor x, Tensor[] weights) -> Tensor", _fake)
define_inference(f"{_OP}_packed", "(Tensor x, Tensor[] packed, int channels) -> Tensor", _fake_packed)


def _tuple(value: Any, length: int, name: str, of: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)) or len(value) != length:
        got = f"{len(value)} of them" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
        raise InputError(f"{_OP}: {name} is {got}; pass a sequence of {length}: {of}")
    return value


def _check(x: Tensor, stages: Sequence[Any], last: Sequence[Any], c5_weight: Tensor, c5_bias: Tensor) -> None:
    c, channels = x.shape[1], 0
    for i, (d_weight, d_bias, *blueprint) in enumerate((*stages, (None, None, *last))):
        part = f"stages[{i}]" if i < _STAGES else "last"
        if d_weight is not None or i < _STAGES:
            _checks.weight(_OP, x, d_weight, f"{part} d_weight", (channels // i if i else None, c, 1, 1))
            _checks.weight(_OP, x, d_bias, f"{part} d_bias", (d_weight.shape[0],))
            channels += d_weight.shape[0]
        pw_weight, dw_weight, dw_bias = blueprint
        _checks.weight(_OP, x, pw_weight, f"{part} pw_weight", (c if i < _STAGES else None, c, 1, 1))
        k = pw_weight.shape[0]
        _checks.weight(_OP, x, dw_weight, f"{part} dw_weight", (k, 1, 3, 3))
        _checks.weight(_OP, x, dw_bias, f"{part} dw_bias", (k,))
    _checks.weight(_OP, x, c5_weight, "c5_weight", (None, channels + k, 1, 1))
    _checks.weight(_OP, x, c5_bias, "c5_bias", (c5_weight.shape[0],))


def blueprint_block(
    x: Tensor,
    stages: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]],
    last: tuple[Tensor, Tensor, Tensor],
    c5_weight: Tensor,
    c5_bias: Tensor,
    *,
    packed: Sequence[Tensor | None] = (None,) * (_STAGES + 2),
) -> Tensor:
    """conv1x1 of three distilled maps and a fourth convolution's: BSRN's block without its ESA (BSRN, section 3.3).

    d_i, r_i = bsconv_stage(r_{i-1}) for i = 1, 2, 3 with r_0 = x, and the result is conv1x1(d_1, d_2, d_3,
    GELU(bsconv(r_3))). On the CPU in float32 and without autograd the maps in between exist for a few rows only.

    Args:
        x: [N, C, H, W].
        stages: of each stage d_weight, d_bias, pw_weight, dw_weight and dw_bias, as for `bsconv_stage`.
        last: pw_weight, dw_weight and dw_bias of the fourth convolution, as for `bsconv`.
        c5_weight, c5_bias: [K, 3 D + E, 1, 1] and [K], with D distilled channels and E from the fourth convolution.
        packed: what `pack_bsconv` made of each stage's weights and of `last`, and `pack_pointwise` of c5's.

    Returns:
        [N, K, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device, or not three stages.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map(_OP, x)
    _tuple(stages, _STAGES, "stages", "the weights of the three stages")
    for i, stage in enumerate(stages):
        _tuple(stage, len(_STAGE), f"stages[{i}]", ", ".join(_STAGE))
    _tuple(last, len(_STAGE) - 2, "last", ", ".join(_STAGE[2:]))
    _tuple(packed, _STAGES + 2, "packed", "what was packed for the stages, for last and for c5, or None")
    weights = [w for part in (*stages, last, (c5_weight, c5_bias)) for w in part]
    if not _fuses(x, weights):
        return _in_parts(x, stages, last, c5_weight, c5_bias, packed)
    if all(p is not None and takes_packed("bsconv", p, x, stages[0][2]) for p in packed):
        return torch.ops.fastsr.blueprint_block_packed(x, list(packed), c5_weight.shape[0])
    _check(x, stages, last, c5_weight, c5_bias)
    return torch.ops.fastsr.blueprint_block(x, weights)


def _fuses(x: Tensor, weights: Sequence[Any]) -> bool:
    if x.dtype != torch.float32 or records(x, *weights):
        return False
    if select("bsconv", x) != "cpu" or select("pointwise", x) != "cpu":
        return False
    kernels = (weights[i] for i in (3, 8, 13, 16))
    return all(isinstance(w, Tensor) and w.shape[2:] == (3, 3) for w in kernels)


def _in_parts(
    x: Tensor,
    stages: Sequence[Any],
    last: Sequence[Any],
    c5_weight: Tensor,
    c5_bias: Tensor,
    packed: Sequence[Tensor | None],
) -> Tensor:
    maps = []
    for stage, weights in zip(stages, packed, strict=False):
        distilled, x = bsconv_stage(x, *stage, packed=weights)
        maps.append(distilled)
    maps.append(bsconv(x, *last, activation="gelu", packed=packed[_STAGES]))
    return pointwise(maps, c5_weight, c5_bias, packed=packed[-1])
