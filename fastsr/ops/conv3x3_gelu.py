"""conv3x3_gelu: dense 3x3 convolution with its activation and shortcut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import reference
from fastsr._dispatch import select
from fastsr.ops import _checks
from fastsr.ops._define import (
    can_pack,
    define_choice,
    define_over,
    define_packed,
    empty_map,
    may_overwrite,
    register_cpu,
    register_cuda,
    register_triton,
    takes_packed,
)
from fastsr.reference import Activation

SMALLEST = 6  # pixels that a map needs for Winograd's convolution to pay (csrc/cpu/conv3x3.cpp)


def _check_shortcut(x: Tensor, weight: Tensor, shortcut: Tensor | None) -> None:
    if shortcut is not None:
        _checks.shortcut("conv3x3_gelu", x, shortcut, (x.shape[0], weight.shape[0], *x.shape[2:]))


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
    dx, d_weight, d_bias = ctx.call_backward(grad, x, weight, bias, ctx.activation, needs_dx)
    return dx if needs_dx else None, d_weight, d_bias, grad if ctx.needs_input_grad[3] else None, None


SCHEMA = "(Tensor x, Tensor weight, Tensor bias, Tensor? shortcut, int activation) -> Tensor"
BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor x, Tensor weight, Tensor bias, int activation, bool needs_dx) -> (Tensor, Tensor, Tensor)"
)

_call = define_choice(
    "conv3x3_gelu",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
register_cpu("conv3x3_gelu", (torch.float32, torch.float16, torch.bfloat16))
register_triton("conv3x3_gelu")
register_cuda("conv3x3_gelu", SCHEMA, BACKWARD_SCHEMA, tf32=True)
define_packed(
    "conv3x3_gelu",
    "(Tensor weight, Tensor bias) -> Tensor",
    {"conv3x3_gelu_packed": ("(Tensor x, Tensor packed, int channels, Tensor? shortcut, int activation) -> Tensor")},
    {"conv3x3_gelu_packed": lambda x, packed, channels, shortcut, activation: empty_map(x, channels)},
)
define_over("conv3x3_gelu", "(Tensor(a!) shortcut, Tensor x, Tensor weight, Tensor bias, int activation) -> ()")
define_over("conv3x3_gelu_packed", "(Tensor(a!) shortcut, Tensor x, Tensor packed, int activation) -> ()")


def pack_conv3x3_gelu(weight: Tensor, bias: Tensor) -> Tensor | None:
    """Weights as the CPU kernel reads them (for Winograd's convolution, transformed), for `packed` of `conv3x3_gelu`.

    Returns:
        A vector for this machine's instruction set and for maps of any dtype, or None where the kernel cannot take
        these weights. It is a copy: later changes of the weights do not reach it.
    """
    if not can_pack("conv3x3_gelu", weight):
        return None
    with torch.no_grad():
        return torch.ops.fastsr.conv3x3_gelu_pack(weight, bias)


def conv3x3_gelu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: Activation = "gelu",
    shortcut: Tensor | None = None,
    packed: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """act(conv3x3(x)) + shortcut, padding 1 (MLRN, equations 1 and 2; RLFN's block with LeakyReLU).

    Args:
        x: [N, C, H, W].
        weight, bias: [K, C, 3, 3] and [K].
        activation: "gelu", "leaky_relu" (slope 0.05) or "none".
        shortcut: [N, K, H, W] added behind the activation, or None.
        packed: what `pack_conv3x3_gelu` made of weight and bias; used where the CPU kernel runs without autograd.
        overwrite: `shortcut` is not needed any more, and may be returned with the result in it.

    Returns:
        [N, K, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("conv3x3_gelu", x)
    _checks.choice("conv3x3_gelu", activation, "activation", _checks.ACTIVATIONS)
    code = _checks.ACTIVATIONS.index(activation)
    others = (bias,) if shortcut is None else (bias, shortcut)
    if takes_packed("conv3x3_gelu", packed, x, weight, *others) and min(x.shape[2:]) >= SMALLEST:
        _check_shortcut(x, weight, shortcut)
        if overwrite and shortcut is not None and may_overwrite("conv3x3_gelu", shortcut):
            torch.ops.fastsr.conv3x3_gelu_packed_(shortcut, x, packed, code)
            return shortcut
        return torch.ops.fastsr.conv3x3_gelu_packed(x, packed, weight.shape[0], shortcut, code)
    _checks.weight("conv3x3_gelu", x, weight, "weight", (None, x.shape[1], 3, 3))
    _checks.weight("conv3x3_gelu", x, bias, "bias", (weight.shape[0],))
    _check_shortcut(x, weight, shortcut)
    backend = select("conv3x3_gelu", x, None, (weight, *others))
    if backend == "reference":
        return reference.conv3x3_gelu(x, weight, bias, activation=activation, shortcut=shortcut)
    if overwrite and shortcut is not None and may_overwrite("conv3x3_gelu", shortcut, x, weight, bias):
        torch.ops.fastsr.conv3x3_gelu_(shortcut, x, weight, bias, code)
        return shortcut
    return _call[backend](x, weight, bias, shortcut, code)
