"""conv3x3_gelu: dense 3x3 convolution with its activation and shortcut."""

from __future__ import annotations

from torch import Tensor

from fastsr import reference
from fastsr._dispatch import select
from fastsr.ops import _checks
from fastsr.reference import Activation


def conv3x3_gelu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: Activation = "gelu",
    shortcut: Tensor | None = None,
) -> Tensor:
    """act(conv3x3(x)) + shortcut, padding 1 (MLRN, equations 1 and 2; RLFN's block with LeakyReLU).

    Args:
        x: [N, C, H, W].
        weight, bias: [K, C, 3, 3] and [K].
        activation: "gelu", "leaky_relu" (slope 0.05) or "none".
        shortcut: [N, K, H, W] added behind the activation, or None.

    Returns:
        [N, K, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("conv3x3_gelu", x)
    _checks.weight("conv3x3_gelu", x, weight, "weight", (None, x.shape[1], 3, 3))
    _checks.weight("conv3x3_gelu", x, bias, "bias", (weight.shape[0],))
    _checks.choice("conv3x3_gelu", activation, "activation", _checks.ACTIVATIONS)
    if shortcut is not None:
        _checks.shortcut("conv3x3_gelu", x, shortcut, (x.shape[0], weight.shape[0], *x.shape[2:]))
    select("conv3x3_gelu", x)
    return reference.conv3x3_gelu(x, weight, bias, activation=activation, shortcut=shortcut)
