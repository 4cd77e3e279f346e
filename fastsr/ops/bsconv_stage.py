"""bsconv_stage: BSRN's distillation stage, its 1x1 and its blueprint convolution, in one pass over the map.

Like `mixer_block` a fusion for the CPU and not an operator with backends to choose: elsewhere, and with autograd,
`pointwise` and `bsconv` run one behind the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr._dispatch import current_backend, exporting
from fastsr.ops import _checks
from fastsr.ops._define import can_pack, define_inference, empty_map
from fastsr.ops.bsconv import bsconv
from fastsr.ops.pointwise import pointwise


def _fake(x: Tensor, d_weight: Tensor, d_bias: Tensor, pw_weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_map(x, d_weight.shape[0]), empty_map(x, pw_weight.shape[0])


define_inference(
    "bsconv_stage",
    "(Tensor x, Tensor d_weight, Tensor d_bias, Tensor pw_weight, Tensor dw_weight, Tensor dw_bias) "
    "-> (Tensor, Tensor)",
    _fake,
)


def bsconv_stage(
    x: Tensor, d_weight: Tensor, d_bias: Tensor, pw_weight: Tensor, dw_weight: Tensor, dw_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """GELU(conv1x1(x)) and GELU(bsconv(x) + x): the distilled and the refined half (BSRN, section 3.3).

    Args:
        x: [N, C, H, W].
        d_weight, d_bias: [D, C, 1, 1] and [D].
        pw_weight, dw_weight, dw_bias: as for `bsconv`, from C to C channels with a 3x3 kernel.

    Returns:
        [N, D, H, W] and [N, C, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("bsconv_stage", x)
    c = x.shape[1]
    tensors = (x, d_weight, d_bias, pw_weight, dw_weight, dw_bias)
    records = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    fuses = current_backend() in ("auto", "cpu") and not exporting() and can_pack("bsconv", x)
    if records or not fuses or dw_weight.shape[2:] != (3, 3):
        distilled = pointwise((x,), d_weight, d_bias, activation="gelu")
        padding = dw_weight.shape[2] // 2
        return distilled, bsconv(x, pw_weight, dw_weight, dw_bias, padding=padding, shortcut=x, activation="gelu")
    _checks.weight("bsconv_stage", x, d_weight, "d_weight", (None, c, 1, 1))
    _checks.weight("bsconv_stage", x, d_bias, "d_bias", (d_weight.shape[0],))
    _checks.weight("bsconv_stage", x, pw_weight, "pw_weight", (c, c, 1, 1))
    _checks.weight("bsconv_stage", x, dw_weight, "dw_weight", (c, 1, 3, 3))
    _checks.weight("bsconv_stage", x, dw_bias, "dw_bias", (c,))
    distilled, refined = torch.ops.fastsr.bsconv_stage(*tensors)
    return distilled, refined
