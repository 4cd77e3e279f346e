"""cca_norm: contrast-aware channel attention with pixel norm and residual."""

from __future__ import annotations

from torch import Tensor

from fastsr import reference
from fastsr._dispatch import select
from fastsr.errors import InputError
from fastsr.ops import _checks


def cca_norm(
    x: Tensor,
    shortcut: Tensor,
    du0_weight: Tensor,
    du0_bias: Tensor,
    du2_weight: Tensor,
    du2_bias: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """Contrast-aware channel attention, pixel norm and residual (ALKDNet, section 3.2, equations 9 and 10).

    The attention is sigmoid(du2(ReLU(du0(standard deviation + mean)))) over the whole image per channel, with
    statistics in float32 at least and gradient 0 for the standard deviation of a constant map.

    Args:
        x: [N, C, H, W].
        shortcut: [N, C, H, W], the block's input.
        du0_weight, du0_bias: [R, C, 1, 1] and [R].
        du2_weight, du2_bias: [C, R, 1, 1] and [C].
        norm_weight, norm_bias: [C], or both None for a block without pixel norm (BSRN).
        eps: of the pixel norm.

    Returns:
        [N, C, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype or device.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("cca_norm", x)
    _checks.same_shape("cca_norm", x, shortcut, "shortcut")
    c = x.shape[1]
    _checks.weight("cca_norm", x, du0_weight, "du0_weight", (None, c, 1, 1))
    r = du0_weight.shape[0]
    _checks.weight("cca_norm", x, du0_bias, "du0_bias", (r,))
    _checks.weight("cca_norm", x, du2_weight, "du2_weight", (c, r, 1, 1))
    _checks.weight("cca_norm", x, du2_bias, "du2_bias", (c,))
    if (norm_weight is None) != (norm_bias is None):
        raise InputError("cca_norm: only one of norm_weight and norm_bias is None; pass both or neither")
    if norm_weight is not None and norm_bias is not None:
        _checks.weight("cca_norm", x, norm_weight, "norm_weight", (c,))
        _checks.weight("cca_norm", x, norm_bias, "norm_bias", (c,))
    select("cca_norm", x)
    return reference.cca_norm(x, shortcut, du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias, eps=eps)
