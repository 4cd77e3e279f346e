"""esa_cca: enhanced spatial attention and `cca_norm` behind it, in one pass less over the map.

Like `mixer_block` a fusion and not an operator with backends to choose: with autograd, and on a CPU where `x` is still
needed, `esa` and `cca_norm` run one behind the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import _cuda, _triton
from fastsr._dispatch import fusing_backend
from fastsr.ops import _checks
from fastsr.ops._define import (
    define_inference,
    define_over,
    empty_map,
    may_overwrite,
    takes_packed,
)
from fastsr.ops.cca_norm import MOST as CCA_MOST
from fastsr.ops.cca_norm import cca_norm, check_cca_weights
from fastsr.ops.esa import MOST as ESA_MOST
from fastsr.ops.esa import check_esa_weights, check_reduced, check_size, esa, form_of
from fastsr.reference import BlueprintESAWeights, ESAWeights, PlainESAWeights


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return empty_map(x, x.shape[1])


_SCHEMA = (
    "(Tensor x, Tensor? reduced, Tensor shortcut, Tensor[] esa_weights, int conv2_padding, Tensor du0_weight, "
    "Tensor du0_bias, Tensor du2_weight, Tensor du2_bias, Tensor? norm_weight, Tensor? norm_bias, float eps) -> Tensor"
)
define_inference("esa_cca", _SCHEMA, _fake)
_cuda.define_fusion("esa_cca", _SCHEMA)
_triton.define_fusion(
    "esa_cca",
    "(Tensor x, Tensor shortcut, Tensor[] esa_weights, int conv2_padding, Tensor du0_weight, Tensor du0_bias, "
    "Tensor du2_weight, Tensor du2_bias, Tensor? norm_weight, Tensor? norm_bias, float eps) -> Tensor",
    _fake,
)

_OVER = (
    "int conv2_padding, Tensor du0_weight, Tensor du0_bias, Tensor du2_weight, Tensor du2_bias, Tensor? norm_weight, "
    "Tensor? norm_bias, float eps) -> ()"
)
define_over("esa_cca", f"(Tensor(a!) x, Tensor shortcut, Tensor[] esa_weights, {_OVER}")
define_over("esa_cca_packed", f"(Tensor(a!) x, Tensor shortcut, Tensor packed, int inner, bool separable, {_OVER}")


def _fusing_backend(
    x: Tensor, shortcut: Tensor, esa_weights: ESAWeights, parameters: tuple[Tensor | None, ...]
) -> str | None:
    """The backend in which these are one operator, or None."""
    du0_weight, are_weights = parameters[0], isinstance(esa_weights, PlainESAWeights | BlueprintESAWeights)
    if not are_weights or not isinstance(shortcut, Tensor) or not isinstance(du0_weight, Tensor):
        return None  # `esa` and `cca_norm` say what is wrong
    if shortcut.dtype != x.dtype:
        return None  # under autocast, which leaves it to the addition to unite them
    channels, hidden, inner = x.shape[1], du0_weight.shape[0], esa_weights.conv1_weight.shape[0]
    of_cca, of_esa, of_triton = CCA_MOST["cuda"], ESA_MOST["cuda"], ESA_MOST["triton"]
    inside = hidden <= of_cca["channels inside"] and inner <= of_esa["channels inside"]
    in_cuda = channels <= of_cca["channels"] and inside
    in_triton = channels <= of_triton["channels"] and inner <= of_triton["channels inside"]
    backends = (("cuda",) if in_cuda else ()) + (("triton",) if in_triton else ())
    return fusing_backend("esa_cca", x, backends, (shortcut, *esa_weights, *parameters))


def esa_cca(
    x: Tensor,
    shortcut: Tensor,
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
    packed: Tensor | None = None,
    overwrite: bool = False,
    reduced: Tensor | None = None,
) -> Tensor:
    """cca_norm(esa(x), shortcut): the end of a distillation block (ALKDNet, section 3.2; BSRN, section 3.3).

    Args:
        x: [N, C, H, W] with H and W at least 15 (13 with `conv2_padding` 1).
        shortcut: [N, C, H, W], the block's input.
        esa_weights, conv2_padding: as for `esa`.
        du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias, eps: as for `cca_norm`.
        packed: what `pack_esa` made of `esa_weights`; used where the CPU kernels run without autograd.
        overwrite: `x` is not needed any more, and may be returned with the result in it.
        reduced: what `alk_condense` or `pointwise_reduce` returned beside `x`, or None: then it is computed here.

    Returns:
        [N, C, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device, or an image that is too small.
        BackendError: a backend is forced that cannot run this.
    """
    parameters = (du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias)
    _checks.feature_map("esa_cca", x)
    check_size("esa_cca", x, esa_weights, conv2_padding)
    check_cca_weights("esa_cca", x, shortcut, *parameters)
    in_place = overwrite and _may_overwrite(x, shortcut, *esa_weights, *parameters)
    if in_place and takes_packed("esa", packed, x, *esa_weights):
        torch.ops.fastsr.esa_cca_packed_(x, shortcut, packed, *form_of(esa_weights), conv2_padding, *parameters, eps)
        return x
    check_esa_weights("esa_cca", x, esa_weights)
    if in_place:
        torch.ops.fastsr.esa_cca_(x, shortcut, list(esa_weights), conv2_padding, *parameters, eps)
        return x
    backend = _fusing_backend(x, shortcut, esa_weights, parameters)
    if backend is None:
        settings: Any = {"packed": packed, "overwrite": overwrite, "reduced": reduced}
        y = esa(x, esa_weights, conv2_padding=conv2_padding, **settings)
        return cca_norm(y, shortcut, *parameters, eps=eps, overwrite=True)
    if backend == "triton":
        return torch.ops.fastsr._triton_esa_cca(x, shortcut, list(esa_weights), conv2_padding, *parameters, eps)
    if reduced is not None:
        check_reduced("esa_cca", x, reduced, esa_weights)
    return torch.ops.fastsr.esa_cca(x, reduced, shortcut, list(esa_weights), conv2_padding, *parameters, eps)


def _may_overwrite(x: Tensor, shortcut: Tensor, *weights: Tensor | None) -> bool:
    """Whether both can run on the CPU, over x."""
    same = shortcut.dtype == x.dtype  # or else the addition unites them, under autocast
    return same and may_overwrite("esa", x, shortcut, *weights) and may_overwrite("cca_norm", x)
