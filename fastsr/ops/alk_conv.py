"""alk_conv and alk_stage: the asymmetric large-kernel convolution, alone and as a distillation stage."""

from __future__ import annotations

from torch import Tensor

from fastsr import reference
from fastsr._dispatch import select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.reference import Activation, ALKConvWeights


def _check_weights(op: str, x: Tensor, weights: ALKConvWeights) -> None:
    if not isinstance(weights, ALKConvWeights):
        raise InputError(f"{op}: weights is a {type(weights).__name__}; pass ALKConvWeights")
    w = weights
    _checks.weight(op, x, w.pw_weight, "pw_weight", (None, x.shape[1], 1, 1))
    k = w.pw_weight.shape[0]
    _checks.weight(op, x, w.lora1_weight, "lora1_weight", (k, 1, None, 1))
    _checks.weight(op, x, w.lora2_weight, "lora2_weight", (k, 1, 1, w.lora1_weight.shape[2]))
    _checks.weight(op, x, w.small_weight, "small_weight", (k, 1, 3, 3))
    _checks.odd_kernel(op, w.lora1_weight, "lora1_weight")
    for name, value in (
        ("lora1_bias", w.lora1_bias),
        ("lora2_bias", w.lora2_bias),
        ("small_bias", w.small_bias),
        ("norm_weight", w.norm_weight),
        ("norm_bias", w.norm_bias),
    ):
        _checks.weight(op, x, value, name, (k,))


def alk_conv(x: Tensor, weights: ALKConvWeights, *, eps: float = 1e-6, activation: Activation = "none") -> Tensor:
    """Asymmetric large-kernel convolution (ALKDNet, section 3.3, equation 11).

    With u = pw(x): act(pixel_norm(GELU(LoRA1(u)) + GELU(LoRA2(u)) + GELU(small_conv(u)))).

    Args:
        x: [N, C, H, W].
        weights: ALKConvWeights for C channels in and K out; the kernel k may be any odd number.
        eps: of the pixel norm.
        activation: behind the norm: "none", "gelu" or "leaky_relu".

    Returns:
        [N, K, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("alk_conv", x)
    _check_weights("alk_conv", x, weights)
    _checks.choice("alk_conv", activation, "activation", _checks.ACTIVATIONS)
    select("alk_conv", x)
    return reference.alk_conv(x, weights, eps=eps, activation=activation)


def alk_stage(
    x: Tensor, d_weight: Tensor, d_bias: Tensor, weights: ALKConvWeights, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """One distillation stage of an ALKDB (ALKDNet, section 3.2, equation 7).

    Args:
        x: [N, C, H, W].
        d_weight, d_bias: the distilling 1x1, [D, C, 1, 1] and [D].
        weights: ALKConvWeights for C channels in and out.
        eps: of the pixel norm.

    Returns:
        The distilled GELU(d(x)) [N, D, H, W] and the refined GELU(alk_conv(x) + x) [N, C, H, W].

    Raises:
        InputError: a wrong rank, shape, dtype or device.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("alk_stage", x)
    _check_weights("alk_stage", x, weights)
    if weights.pw_weight.shape[0] != x.shape[1]:
        raise InputError(
            f"alk_stage: pw_weight gives {weights.pw_weight.shape[0]} channels; pass {x.shape[1]}, the channels of "
            "x, which is added to them"
        )
    _checks.weight("alk_stage", x, d_weight, "d_weight", (None, x.shape[1], 1, 1))
    _checks.weight("alk_stage", x, d_bias, "d_bias", (d_weight.shape[0],))
    select("alk_stage", x)
    return reference.alk_stage(x, d_weight, d_bias, weights, eps=eps)
