"""upsample: the last 3x3 convolution, pixel shuffle and the residual from the low-resolution image."""

from __future__ import annotations

from torch import Tensor

from fastsr import reference
from fastsr._dispatch import select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.reference import Residual


def upsample(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor | None,
    *,
    scale: int,
    residual: Residual = "none",
) -> Tensor:
    """pixel_shuffle(conv3x3(x)) plus a residual from the low-resolution image.

    Args:
        x: features [N, C, H, W].
        weight, bias: [K * scale * scale, C, 3, 3] and [K * scale * scale], for K output channels.
        lr: the network's input [N, K, H, W]; needed unless `residual` is "none".
        scale: the enlargement, at least 1.
        residual: "anchor" repeats each LR pixel over its block (ALKDNet, section 3.1, equation 5), "bilinear" adds
            the bilinearly enlarged LR image (MLRN, section 3.2, equation 10), "none" adds nothing.

    Returns:
        [N, K, H * scale, W * scale] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype, device, scale or residual.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("upsample", x)
    _checks.weight("upsample", x, weight, "weight", (None, x.shape[1], 3, 3))
    _checks.weight("upsample", x, bias, "bias", (weight.shape[0],))
    _checks.choice("upsample", residual, "residual", _checks.RESIDUALS)
    if scale < 1 or weight.shape[0] % (scale * scale):
        raise InputError(
            f"upsample: scale is {scale} and weight gives {weight.shape[0]} channels; pass a multiple of scale squared"
        )
    if residual != "none":
        if lr is None:
            raise InputError(f"upsample: residual is {residual!r} but lr is None; pass the low-resolution image")
        want = (x.shape[0], weight.shape[0] // (scale * scale), x.shape[2], x.shape[3])
        _checks.feature_map("upsample", lr, "lr")
        if tuple(lr.shape) != want:
            raise InputError(f"upsample: lr has shape {tuple(lr.shape)}; pass {want}")
    select("upsample", x)
    return reference.upsample(x, weight, bias, lr, scale=scale, residual=residual)
