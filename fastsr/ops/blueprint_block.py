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
from fastsr.ops._define import define_inference, empty_map, records
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


def _check_sequence(value: Any, length: int, name: str, of: str) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != length:
        got = f"{len(value)} of them" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
        raise InputError(f"{_OP}: {name} is {got}; pass a sequence of {length}: {of}")


def _check(x: Tensor, stages: Sequence[Any], last: Sequence[Any], c5_weight: Tensor, c5_bias: Tensor) -> None:
    """The weights must fit `x` and one another."""
    c, channels = x.shape[1], 0
    for i, (d_weight, d_bias, *blueprint) in enumerate(stages):
        _checks.weight(_OP, x, d_weight, f"stages[{i}] d_weight", (None, c, 1, 1))
        _checks.weight(_OP, x, d_bias, f"stages[{i}] d_bias", (d_weight.shape[0],))
        _check_blueprint(x, f"stages[{i}]", c, *blueprint)
        channels += d_weight.shape[0]
    _check_blueprint(x, "last", None, *last)
    _checks.weight(_OP, x, c5_weight, "c5_weight", (None, channels + last[0].shape[0], 1, 1))
    _checks.weight(_OP, x, c5_bias, "c5_bias", (c5_weight.shape[0],))


def _check_blueprint(
    x: Tensor, part: str, channels: int | None, pw_weight: Tensor, dw_weight: Tensor, dw_bias: Tensor
) -> None:
    _checks.weight(_OP, x, pw_weight, f"{part} pw_weight", (channels, x.shape[1], 1, 1))
    k = pw_weight.shape[0]
    _checks.weight(_OP, x, dw_weight, f"{part} dw_weight", (k, 1, 3, 3))
    _checks.weight(_OP, x, dw_bias, f"{part} dw_bias", (k,))


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
        c5_weight, c5_bias: of the 1x1 from the distilled channels and the fourth convolution's, in this order, to K.
        packed: what `pack_bsconv` made of each stage's weights and of `last`, and `pack_pointwise` of c5's; used where
            one pass is taken.

    Returns:
        [N, K, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device, other than 3x3 filters, or not three stages.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map(_OP, x)
    _check_sequence(stages, _STAGES, "stages", "the weights of the three stages")
    for i, stage in enumerate(stages):
        _check_sequence(stage, len(_STAGE), f"stages[{i}]", ", ".join(_STAGE))
    _check_sequence(last, len(_STAGE) - 2, "last", ", ".join(_STAGE[2:]))
    of = "what was packed for the stages, for last and for c5, or None"
    _check_sequence(packed, _STAGES + 2, "packed", of)
    if not all(p is None or isinstance(p, Tensor) for p in packed):
        raise InputError(f"{_OP}: packed holds something else than tensors; pass {of}")
    _check(x, stages, last, c5_weight, c5_bias)
    weights = [w for part in (*stages, last, (c5_weight, c5_bias)) for w in part]
    if not _fuses(x, weights, len({stage[0].shape[0] for stage in stages}) == 1):
        return _in_parts(x, stages, last, c5_weight, c5_bias, packed)
    if all(p is not None and p.device == x.device and p.dtype == torch.float32 for p in packed):
        return torch.ops.fastsr.blueprint_block_packed(x, list(packed), c5_weight.shape[0])
    return torch.ops.fastsr.blueprint_block(x, weights)


def _fuses(x: Tensor, weights: Sequence[Tensor], are_alike: bool) -> bool:
    """Whether one pass can be taken; its kernel wants stages that distil alike.

    Not in a trace of torch.jit, which may be asked for gradients and be given other dtypes.
    """
    if not are_alike or x.dtype != torch.float32 or torch.jit.is_tracing() or records(x, *weights):
        return False
    return select("bsconv", x) == "cpu" and select("pointwise", x) == "cpu"


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
