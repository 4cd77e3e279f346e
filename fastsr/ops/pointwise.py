"""pointwise: a 1x1 convolution of several maps as if they were concatenated, with its activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsr import reference
from fastsr._dispatch import Extents, limit, select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._define import (
    can_pack,
    define,
    define_choice,
    define_packed,
    empty_map,
    records,
    register_cpu,
    register_cuda,
    register_triton,
    takes_packed,
)
from fastsr.reference import Activation

CUDA_MAX_INPUTS = 16  # csrc/cuda/pointwise.h
KEPT_FROM = 128  # channels in, from which on a product's time is worth the memory that keeping its result takes


def _fake(inputs: list[Tensor], weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int) -> Tensor:
    return empty_map(inputs[0], weight.shape[0])


def _fake_backward(
    grad: Tensor, inputs: list[Tensor], weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    d_inputs = [empty_map(x, x.shape[1]) for x in inputs]
    has_own_gradient = shortcut is not None and activation != 0
    d_shortcut = empty_map(inputs[0], weight.shape[0]) if has_own_gradient else grad.new_empty(0)
    return d_inputs, weight.new_empty(weight.shape), bias.new_empty(bias.shape), d_shortcut


def _setup_context(ctx: Any, inputs: tuple[list[Tensor], Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:
    maps, weight, bias, shortcut, ctx.activation = inputs
    ctx.has_shortcut = shortcut is not None
    # Without an activation the derivative does not depend on the shortcut.
    ctx.save_for_backward(weight, bias, shortcut if ctx.activation else None, *maps)


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None, None]:
    weight, bias, shortcut, *maps = ctx.saved_tensors
    *gradients, d_shortcut = ctx.call_backward(grad, maps, weight, bias, shortcut, ctx.activation)
    if not ctx.has_shortcut:
        return (*gradients, None, None)
    return (*gradients, d_shortcut if ctx.activation else grad, None)


SCHEMA = "(Tensor[] inputs, Tensor weight, Tensor bias, Tensor? shortcut, int activation) -> Tensor"
BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor[] inputs, Tensor weight, Tensor bias, Tensor? shortcut, int activation) "
    "-> (Tensor[], Tensor, Tensor, Tensor)"
)

_call = define_choice(
    "pointwise",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
register_cpu("pointwise", (torch.float32, torch.float16, torch.bfloat16))
register_triton("pointwise")
register_cuda("pointwise", SCHEMA, BACKWARD_SCHEMA, tf32=True)


def _extents(inputs: Sequence[Tensor], **_: Any) -> Extents:
    return {"inputs": len(inputs)}


limit("pointwise", _extents, {"cuda": {"inputs": CUDA_MAX_INPUTS}})


def _fake_kept(
    inputs: list[Tensor], weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int
) -> tuple[Tensor, Tensor]:
    y = empty_map(inputs[0], weight.shape[0])
    return y, torch.empty_like(y, memory_format=torch.channels_last)


def _fake_kept_backward(
    grad: Tensor,
    pre: Tensor,
    inputs: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    has_shortcut: bool,
    activation: int,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    return _fake_backward(grad, inputs, weight, bias, pre if has_shortcut else None, activation)


def _setup_kept(
    ctx: Any, inputs: tuple[list[Tensor], Tensor, Tensor, Tensor | None, int], output: tuple[Tensor, Tensor]
) -> None:
    maps, weight, bias, shortcut, ctx.activation = inputs
    ctx.has_shortcut = shortcut is not None
    ctx.save_for_backward(output[1], weight, bias, *maps)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _kept_backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    pre, weight, bias, *maps = ctx.saved_tensors
    *gradients, d_shortcut = ctx.call_backward(grad, pre, maps, weight, bias, ctx.has_shortcut, ctx.activation)
    return (*gradients, d_shortcut if ctx.has_shortcut else None, None)


# On the CPU and with autograd, where an activation follows: the second result is its argument, kept for the backward.
_call_kept = define(
    "pointwise_kept",
    SCHEMA.replace("-> Tensor", "-> (Tensor, Tensor)"),
    "(Tensor grad, Tensor pre, Tensor[] inputs, Tensor weight, Tensor bias, bool has_shortcut, int activation) "
    "-> (Tensor[], Tensor, Tensor, Tensor)",
    fake=_fake_kept,
    fake_backward=_fake_kept_backward,
    setup_context=_setup_kept,
    backward=_kept_backward,
)
define_packed(
    "pointwise",
    "(Tensor weight, Tensor bias) -> Tensor",
    {
        "pointwise_packed": "(Tensor[] inputs, Tensor packed, int channels, int first, Tensor? shortcut, "
        "int activation) -> Tensor"
    },
    {"pointwise_packed": lambda inputs, packed, channels, *rest: empty_map(inputs[0], channels)},
)


def pack_pointwise(weight: Tensor, bias: Tensor) -> Tensor | None:
    """Weights in the order in which the CPU kernel reads them, for `packed` of `pointwise`.

    Returns:
        A vector for this machine's instruction set and for maps of any dtype, or None where the kernel cannot take
        these weights. It is a copy: later changes of the weights do not reach it.

    Raises:
        InputError: a wrong rank, shape, dtype or device.
    """
    _checks.feature_map("pack_pointwise", weight, "weight")
    _checks.weight("pack_pointwise", weight, weight, "weight", (None, None, 1, 1))
    _checks.weight("pack_pointwise", weight, bias, "bias", (weight.shape[0],))
    if not can_pack("pointwise", weight):
        return None
    with torch.no_grad():
        return torch.ops.fastsr.pointwise_pack(weight, bias)


def may_free_early(x: Tensor) -> bool:
    """Whether maps like `x` may be freed before they are used, being summed by `shortcut` or made again later.

    On the CPU, in float32 and without autograd, which would keep them anyway. In half precision every sum rounds.
    """
    recorded = torch.jit.is_tracing() or records(x)
    return not recorded and x.dtype == torch.float32 and select("pointwise", x) == "cpu"


def pointwise(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    *,
    shortcut: Tensor | None = None,
    activation: Activation = "none",
    packed: Tensor | None = None,
    first: int | None = None,
) -> Tensor:
    """act(conv1x1(cat(inputs, 1)) + shortcut), read from the maps themselves: nothing is concatenated.

    Args:
        inputs: one or more [N, C_i, H, W] maps of one dtype.
        weight, bias: [K, sum of C_i, 1, 1], with `first` [K, at least first + sum of C_i, 1, 1], and [K].
        shortcut: [N, K, H, W] added before the activation, or None.
        activation: "none", "gelu" or "leaky_relu" (slope 0.05).
        packed: what `pack_pointwise` made of weight and bias; used where the CPU kernel runs without autograd.
        first: which of the weight's channels the inputs begin with, None if they are all. The bias is added with
            channel 0 only, so that a product can be added up in parts, by `shortcut`.

    Returns:
        [N, K, H, W] in the dtype of the inputs and the memory layout of the first.

    Raises:
        InputError: no input, a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    check_inputs("pointwise", inputs)
    head = inputs[0]
    channels, start = sum(x.shape[1] for x in inputs), first or 0
    mixed = any(x.dtype != head.dtype for x in inputs)  # under autocast, which leaves it to `cat` to unite them
    _checks.choice("pointwise", activation, "activation", _checks.ACTIVATIONS)
    code = _checks.ACTIVATIONS.index(activation)
    if packed is not None and not mixed:
        others = (bias, *inputs[1:]) if shortcut is None else (bias, *inputs[1:], shortcut)
        whole = start + channels if first is None else weight.shape[1]
        if 0 <= start <= whole - channels and takes_packed("pointwise", packed, head, weight, *others, channels=whole):
            _check_shortcut(head, weight, shortcut)
            return torch.ops.fastsr.pointwise_packed(list(inputs), packed, weight.shape[0], start, shortcut, code)
    _checks.weight("pointwise", head, weight, "weight", (None, channels if first is None else None, 1, 1))
    _checks.weight("pointwise", head, bias, "bias", (weight.shape[0],))
    _check_shortcut(head, weight, shortcut)
    if first is not None:
        weight, bias = _part(weight, bias, first, channels)
    given = (*inputs, weight, bias, shortcut)
    backend = "reference" if mixed else select("pointwise", head, _extents(inputs), given)
    if backend == "reference":
        return reference.pointwise(inputs, weight, bias, shortcut=shortcut, activation=activation)
    if backend == "cpu" and code and channels >= KEPT_FROM and records(*given):
        return _call_kept(list(inputs), weight, bias, shortcut, code)[0]
    return _call[backend](list(inputs), weight, bias, shortcut, code)


def check_inputs(op: str, inputs: Sequence[Tensor]) -> None:
    """There must be maps that differ only in channels."""
    if not isinstance(inputs, (list, tuple)) or len(inputs) == 0:
        kind = "tensor" if isinstance(inputs, Tensor) else type(inputs).__name__
        got = "empty" if isinstance(inputs, (list, tuple)) else f"a {kind}"
        raise InputError(f"{op}: inputs is {got}; pass a sequence of at least one map")
    head = inputs[0]
    for i, x in enumerate(inputs):
        _checks.feature_map(op, x, f"inputs[{i}]")
        if x.shape[0] != head.shape[0] or x.shape[2:] != head.shape[2:]:
            raise InputError(
                f"{op}: inputs[{i}] has shape {tuple(x.shape)} and inputs[0] {tuple(head.shape)}; "
                "pass maps that differ only in channels"
            )
        _checks.weight(op, head, x, f"inputs[{i}]", (None, None, None, None))


def _check_shortcut(x: Tensor, weight: Tensor, shortcut: Tensor | None) -> None:
    if shortcut is not None:
        _checks.shortcut("pointwise", x, shortcut, (x.shape[0], weight.shape[0], *x.shape[2:]))


def _part(weight: Tensor, bias: Tensor, first: int, channels: int) -> tuple[Tensor, Tensor]:
    """Of the product, what `channels` input channels from `first` on have in it."""
    if first < 0 or first + channels > weight.shape[1]:
        raise InputError(
            f"pointwise: the inputs are channels {first} to {first + channels} of a weight with {weight.shape[1]}; "
            "pass first and inputs that lie within it"
        )
    if channels == weight.shape[1]:
        return weight, bias
    return weight[:, first : first + channels], bias if first == 0 else torch.zeros_like(bias)
