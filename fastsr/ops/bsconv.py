"""bsconv: blueprint separable convolution."""

from __future__ import annotations

from torch import Tensor

from fastsr import reference
from fastsr._dispatch import select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.reference import Activation


def bsconv(
    x: Tensor,
    pw_weight: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    *,
    stride: int = 1,
    padding: int = 1,
    shortcut: Tensor | None = None,
    activation: Activation = "none",
) -> Tensor:
    """Blueprint separable convolution, BSConvU: act(dw(pw(x)) + shortcut) (BSRN, section 3.2).

    Args:
        x: [N, C, H, W].
        pw_weight: [K, C, 1, 1], without bias.
        dw_weight, dw_bias: [K, 1, 3, 3] (any odd kernel) and [K].
        stride, padding: of the depthwise convolution.
        shortcut: [N, K, H', W'] added before the activation, or None.
        activation: "none", "gelu" or "leaky_relu" (slope 0.05).

    Returns:
        [N, K, H', W'] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("bsconv", x)
    _checks.weight("bsconv", x, pw_weight, "pw_weight", (None, x.shape[1], 1, 1))
    channels = pw_weight.shape[0]
    _checks.weight("bsconv", x, dw_weight, "dw_weight", (channels, 1, None, None))
    _checks.odd_kernel("bsconv", dw_weight, "dw_weight")
    _checks.weight("bsconv", x, dw_bias, "dw_bias", (channels,))
    _checks.choice("bsconv", activation, "activation", _checks.ACTIVATIONS)
    if stride < 1 or padding < 0:
        raise InputError(f"bsconv: stride is {stride} and padding {padding}; pass stride >= 1 and padding >= 0")
    if shortcut is not None:
        kh, kw = dw_weight.shape[-2:]
        height, width = ((n + 2 * padding - k) // stride + 1 for n, k in ((x.shape[2], kh), (x.shape[3], kw)))
        _checks.shortcut("bsconv", x, shortcut, (x.shape[0], channels, height, width))
    select("bsconv", x)
    return reference.bsconv(
        x,
        pw_weight,
        dw_weight,
        dw_bias,
        stride=stride,
        padding=padding,
        shortcut=shortcut,
        activation=activation,
    )
