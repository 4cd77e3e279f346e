"""conv3x3_gelu: dense 3x3 convolution with its activation and shortcut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import reference
from fastsr._dispatch import select
from fastsr.ops import _checks
from fastsr.ops._define import define, empty_map, register_cpu, register_triton
from fastsr.reference import Activation


def _check(x: Tensor, weight: Tensor, bias: Tensor, activation: str, shortcut: Tensor | None) -> None:
    _checks.feature_map("conv3x3_gelu", x)
    _checks.weight("conv3x3_gelu", x, weight, "weight", (None, x.shape[1], 3, 3))
    _checks.weight("conv3x3_gelu", x, bias, "bias", (weight.shape[0],))
    _checks.choice("conv3x3_gelu", activation, "activation", _checks.ACTIVATIONS)
    if shortcut is None:
        return
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    _checks.feature_map("conv3x3_gelu", shortcut, "shortcut")
    _checks.weight("conv3x3_gelu", x, shortcut, "shortcut", shape)


def _fake(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int) -> Tensor:
    return empty_map(x, weight.shape[0])


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, activation: int, needs_dx: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = empty_map(x, x.shape[1]) if needs_dx else x.new_empty(0)
    return dx, weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:
    x, weight, bias, _, activation = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.activation = activation


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, None]:
    x, weight, bias = ctx.saved_tensors
    needs_dx = ctx.needs_input_grad[0]
    dx, d_weight, d_bias = torch.ops.fastsr.conv3x3_gelu_backward(grad, x, weight, bias, ctx.activation, needs_dx)
    return dx if needs_dx else None, d_weight, d_bias, grad if ctx.needs_input_grad[3] else None, None


define(
    "conv3x3_gelu",
    "(Tensor x, Tensor weight, Tensor bias, Tensor? shortcut, int activation) -> Tensor",
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, int activation, bool needs_dx) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
register_cpu("conv3x3_gelu", (torch.float32, torch.float16, torch.bfloat16))
register_triton("conv3x3_gelu")


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
    _check(x, weight, bias, activation, shortcut)
    if select("conv3x3_gelu", x) == "reference":
        return reference.conv3x3_gelu(x, weight, bias, activation=activation, shortcut=shortcut)
    return torch.ops.fastsr.conv3x3_gelu(x, weight, bias, shortcut, _checks.ACTIVATIONS.index(activation))
