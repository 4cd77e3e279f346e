"""mixer_block: MLRN's block up to its ESA, two 3x3 convolutions and the mixer, in one operator on the CPU.

It is a fusion of `conv3x3_gelu` and `conv_mix`, not an operator of its own with backends to choose: where the CPU
kernel does not run, those two do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr._dispatch import records, select
from fastsr.ops import _checks
from fastsr.ops._define import define, empty_map
from fastsr.ops.conv3x3_gelu import conv3x3_gelu
from fastsr.ops.conv_mix import conv_mix
from fastsr.reference import Activation

LARGE = 1 << 20  # elements of a map from which on it pays to have two maps fewer

_WEIGHTS = (
    "Tensor c1_weight, Tensor c1_bias, Tensor c2_weight, Tensor c2_bias, Tensor? dw_weight, Tensor? dw_bias, "
    "Tensor pw_weight, Tensor pw_bias, Tensor c5_weight, Tensor c5_bias, int activation"
)


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, c5_weight, _, _, keeps = rest
    y = empty_map(x, c5_weight.shape[0])
    if not keeps:
        return y, x.new_empty(0), x.new_empty(0)
    pre1, pre2 = (torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last) for _ in range(2))
    return y, pre1, pre2


def _fake_backward(grad: Tensor, x: Tensor, pre1: Tensor, pre2: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *weights, _ = rest
    return (empty_map(x, x.shape[1]), *(x.new_empty(0) if w is None else w.new_empty(w.shape) for w in weights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, *weights, ctx.activation, _ = inputs
    _, pre1, pre2 = output
    ctx.save_for_backward(x, pre1, pre2, *weights)
    ctx.mark_non_differentiable(pre1, pre2)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *kept: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 13
    x, pre1, pre2, *weights = ctx.saved_tensors
    gradients = ctx.call_backward(grad, x, pre1, pre2, *weights, ctx.activation)
    tensors = (x, *weights)
    return (*(None if t is None else g for t, g in zip(tensors, gradients, strict=True)), None, None)


_call = define(
    "mixer_block",
    f"(Tensor x, {_WEIGHTS}, bool keeps) -> (Tensor, Tensor, Tensor)",
    f"(Tensor grad, Tensor x, Tensor pre1, Tensor pre2, {_WEIGHTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)


def _fuses(x: Tensor, keeps: bool, is_packed: bool) -> bool:
    if x.dtype != torch.float32 or not (keeps or not is_packed or x.numel() >= LARGE):
        return False
    if torch.jit.is_tracing() and not keeps:
        return False  # a trace may be asked for gradients, and be given other dtypes
    return all(select(op, x) == "cpu" for op in ("conv3x3_gelu", "conv_mix"))


def mixer_block(
    x: Tensor,
    c1_weight: Tensor,
    c1_bias: Tensor,
    c2_weight: Tensor,
    c2_bias: Tensor,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor,
    c5_weight: Tensor,
    c5_bias: Tensor,
    *,
    activation: Activation = "gelu",
    packed: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """conv_mix(act(conv3x3(act(conv3x3(x)))), x): MLRN's block without its ESA (MLRN, equations 1 to 5).

    On the CPU in float32 it is one operator: without autograd the maps between its parts exist for a few rows only, and
    with it they are kept in front of the activations, so that the backward does not repeat the convolutions.

    Args:
        x: [N, C, H, W].
        c1_weight, c1_bias, c2_weight, c2_bias: of the 3x3 convolutions, [C, C, 3, 3] and [C].
        dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias: as for `conv_mix`.
        activation: "gelu" or, for the ablation, "leaky_relu".
        packed: what `pack_conv3x3_gelu` made of the 3x3 convolutions' weights; used for small maps without autograd.

    Returns:
        [N, K, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("mixer_block", x)
    _checks.sequence("mixer_block", packed, 2, "packed", "what was packed for the 3x3 convolutions, or None")
    for vector in packed:
        _checks.packed("mixer_block", vector)
    c = x.shape[1]
    weights = (c1_weight, c1_bias, c2_weight, c2_bias, dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias)
    keeps = records(x, *weights)
    if not _fuses(x, keeps, packed[0] is not None):
        y = conv3x3_gelu(x, c1_weight, c1_bias, activation=activation, packed=packed[0])
        y = conv3x3_gelu(y, c2_weight, c2_bias, activation=activation, packed=packed[1])
        mix = (dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias)
        return conv_mix(y, x, *mix, activation=activation)
    for name, weight, bias in (("c1", c1_weight, c1_bias), ("c2", c2_weight, c2_bias)):
        _checks.weight("mixer_block", x, weight, f"{name}_weight", (c, c, 3, 3))
        _checks.weight("mixer_block", x, bias, f"{name}_bias", (c,))
    _checks.mix_weights("mixer_block", x, *weights[4:])
    _checks.choice("mixer_block", activation, "activation", _checks.ACTIVATIONS)
    y, _, _ = _call(x, *weights, _checks.ACTIVATIONS.index(activation), keeps)
    return y
