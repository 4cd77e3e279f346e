"""blueprint_block: BSRN's block as one operator, its convolutions in one pass over the map.

A fusion, not an operator with backends to choose: it runs where its parts would run in C++ on the CPU in float32,
without autograd. Elsewhere they run one behind the other.
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
from fastsr.ops.cca_norm import check_cca_weights
from fastsr.ops.esa import check_esa_weights, check_size, form_of
from fastsr.ops.esa_cca import esa_cca
from fastsr.ops.pointwise import pointwise
from fastsr.reference import BlueprintESAWeights, ESAWeights

_OP = "blueprint_block"
_STAGES = 3
_STAGE = ("d_weight", "d_bias", "pw_weight", "dw_weight", "dw_bias")


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return empty_map(x, x.shape[1])


_ATTENTIONS = (
    "int conv2_padding, Tensor du0_weight, Tensor du0_bias, Tensor du2_weight, Tensor du2_bias, Tensor? norm_weight, "
    "Tensor? norm_bias, float eps"
)
define_inference(_OP, f"(Tensor x, Tensor[] weights, Tensor[] esa_weights, {_ATTENTIONS}) -> Tensor", _fake)
define_inference(f"{_OP}_packed", f"(Tensor x, Tensor[] packed, int inner, {_ATTENTIONS}) -> Tensor", _fake)


def _check(x: Tensor, stages: Sequence[Any], last: Sequence[Any], c5_weight: Tensor, c5_bias: Tensor) -> None:
    """The weights must fit `x` and one another."""
    c, channels = x.shape[1], 0
    for i, (d_weight, d_bias, *blueprint) in enumerate(stages):
        _checks.weight(_OP, x, d_weight, f"stages[{i}] d_weight", (None, c, 1, 1))
        _checks.weight(_OP, x, d_bias, f"stages[{i}] d_bias", (d_weight.shape[0],))
        _check_blueprint(x, f"stages[{i}]", c, *blueprint)
        channels += d_weight.shape[0]
    _check_blueprint(x, "last", None, *last)
    _checks.weight(_OP, x, c5_weight, "c5_weight", (c, channels + last[0].shape[0], 1, 1))
    _checks.weight(_OP, x, c5_bias, "c5_bias", (c,))


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
    esa_weights: ESAWeights,
    du0_weight: Tensor,
    du0_bias: Tensor,
    du2_weight: Tensor,
    du2_bias: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    conv2_padding: int = 0,
    eps: float = 1e-5,
    packed: Sequence[Tensor | None] = (None,) * (_STAGES + 3),
) -> Tensor:
    """BSRN's block (section 3.3): three distillation stages, a fourth convolution, a 1x1, ESA and CCA.

    d_i, r_i = bsconv_stage(r_{i-1}) for i = 1, 2, 3 with r_0 = x, y = conv1x1(d_1, d_2, d_3, GELU(bsconv(r_3))), and
    the result is esa_cca(y, x). On the CPU in float32 and without autograd the maps before y exist for a few rows only.

    Args:
        x: [N, C, H, W] with H and W at least 15 (13 with `conv2_padding` 1).
        stages: of each stage d_weight, d_bias, pw_weight, dw_weight and dw_bias, as for `bsconv_stage`.
        last: pw_weight, dw_weight and dw_bias of the fourth convolution, as for `bsconv`.
        c5_weight, c5_bias: of the 1x1 from the distilled channels and the fourth convolution's, in this order, to C.
        esa_weights, conv2_padding: as for `esa`.
        du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias, eps: as for `cca_norm`.
        packed: what `pack_bsconv` made of each stage's weights and of `last`, `pack_pointwise` of c5's and `pack_esa`
            of the ESA's; used where this is one operator.

    Returns:
        [N, C, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device, other than 3x3 filters, not three stages, or an image that is
            too small.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map(_OP, x)
    _checks.sequence(_OP, stages, _STAGES, "stages", "the weights of the three stages")
    for i, stage in enumerate(stages):
        _checks.sequence(_OP, stage, len(_STAGE), f"stages[{i}]", ", ".join(_STAGE))
    _checks.sequence(_OP, last, len(_STAGE) - 2, "last", ", ".join(_STAGE[2:]))
    of = "what was packed for the stages, for last, for c5 and for the ESA, or None"
    _checks.sequence(_OP, packed, _STAGES + 3, "packed", of)
    if not all(p is None or isinstance(p, Tensor) for p in packed):
        raise InputError(f"{_OP}: packed holds something else than tensors; pass {of}")
    check_size(_OP, x, esa_weights, conv2_padding)
    parameters = (du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias)
    rest = (conv2_padding, *parameters, eps)
    weights = [w for part in (*stages, last, (c5_weight, c5_bias)) for w in part]
    fuses = _fuses(x, (*weights, *esa_weights, *parameters)) and _distil_alike(stages)
    if fuses and isinstance(esa_weights, BlueprintESAWeights) and _fit(packed, x, c5_weight):
        check_cca_weights(_OP, x, x, *parameters)
        return torch.ops.fastsr.blueprint_block_packed(x, list(packed), form_of(esa_weights)[0], *rest)
    _check(x, stages, last, c5_weight, c5_bias)
    check_esa_weights(_OP, x, esa_weights)
    check_cca_weights(_OP, x, x, *parameters)
    if fuses:
        return torch.ops.fastsr.blueprint_block(x, weights, list(esa_weights), *rest)
    y = _in_parts(x, stages, last, c5_weight, c5_bias, packed)
    settings: Any = {"conv2_padding": conv2_padding, "eps": eps, "packed": packed[-1], "overwrite": True}
    return esa_cca(y, x, esa_weights, *parameters, **settings)


def _fuses(x: Tensor, weights: Sequence[Any]) -> bool:
    """Whether this is one operator.

    Not in a trace of torch.jit, which may be asked for gradients and be given other dtypes.
    """
    if x.dtype != torch.float32 or torch.jit.is_tracing() or records(x, *weights):
        return False
    return all(select(op, x) == "cpu" for op in ("bsconv", "pointwise", "esa", "cca_norm"))


def _distil_alike(stages: Sequence[Sequence[Any]]) -> bool:
    """Whether all stages distil as many channels, as the kernel wants them to."""
    channels = [stage[0].shape[:1] for stage in stages if isinstance(stage[0], Tensor)]
    # Not by a set: in a trace of torch.jit sizes are tensors, all different ones to it.
    return len(channels) == len(stages) and all(count == channels[0] for count in channels)


def _fit(packed: Sequence[Tensor | None], x: Tensor, c5_weight: Tensor) -> bool:
    """Whether all weights are packed for the CPU; a map of other channels is left to the usual checks."""
    if not isinstance(c5_weight, Tensor) or x.shape[1] != c5_weight.shape[0]:
        return False
    return all(p is not None and p.device == x.device and p.dtype == torch.float32 for p in packed)


def _in_parts(
    x: Tensor,
    stages: Sequence[Any],
    last: Sequence[Any],
    c5_weight: Tensor,
    c5_bias: Tensor,
    packed: Sequence[Tensor | None],
) -> Tensor:
    """The block up to its ESA."""
    maps = []
    for stage, weights in zip(stages, packed, strict=False):
        distilled, x = bsconv_stage(x, *stage, packed=weights)
        maps.append(distilled)
    maps.append(bsconv(x, *last, activation="gelu", packed=packed[_STAGES]))
    return pointwise(maps, c5_weight, c5_bias, packed=packed[_STAGES + 1])
