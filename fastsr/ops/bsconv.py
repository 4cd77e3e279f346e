"""bsconv: blueprint separable convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import reference
from fastsr._dispatch import Extents, limit, reference_because, select
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._define import (
    can_pack,
    define_choice,
    define_packed,
    empty_map,
    register_cpu,
    register_cuda,
    register_triton,
    takes_packed,
)
from fastsr.reference import Activation

MAX_CHANNELS = 64  # of the CUDA C++ kernels, in and out (csrc/cuda/bsconv.h)

_INPUTS = "Tensor x, Tensor pw_weight, Tensor dw_weight, Tensor dw_bias, Tensor? shortcut, int activation"
SCHEMA = f"({_INPUTS}) -> Tensor"
BACKWARD_SCHEMA = f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"


def _fake(x: Tensor, pw_weight: Tensor, *rest: Any) -> Tensor:
    return empty_map(x, pw_weight.shape[0])


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    pw_weight: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    shortcut: Tensor | None,
    activation: int,
) -> tuple[Tensor, ...]:
    weights = (torch.empty_like(w, memory_format=torch.contiguous_format) for w in (pw_weight, dw_weight, dw_bias))
    has_own_gradient = shortcut is not None and activation != 0
    d_shortcut = empty_map(x, pw_weight.shape[0]) if has_own_gradient else x.new_empty(0)
    return (empty_map(x, x.shape[1]), *weights, d_shortcut)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, pw_weight, dw_weight, dw_bias, shortcut, ctx.activation = inputs
    ctx.has_shortcut = shortcut is not None
    # Without an activation the derivative does not depend on the shortcut.
    ctx.save_for_backward(x, pw_weight, dw_weight, dw_bias, shortcut if ctx.activation else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *gradients, d_shortcut = ctx.call_backward(grad, *ctx.saved_tensors, ctx.activation)
    if not ctx.has_shortcut:
        return (*gradients, None, None)
    return (*gradients, d_shortcut if ctx.activation else grad, None)


_call = define_choice(
    "bsconv",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
register_cpu("bsconv", (torch.float32, torch.float16, torch.bfloat16))
register_triton("bsconv")
register_cuda("bsconv", SCHEMA, BACKWARD_SCHEMA, tf32=True)


def _extents(pw_weight: Tensor, **_: Any) -> Extents:
    return {"channels": max(pw_weight.shape[:2])}


limit("bsconv", _extents, {"cuda": {"channels": MAX_CHANNELS}})

define_packed(
    "bsconv",
    "(Tensor pw_weight, Tensor dw_weight, Tensor dw_bias, Tensor? d_weight, Tensor? d_bias) -> Tensor",
    {
        "bsconv_packed": "(Tensor x, Tensor packed, int channels, Tensor? shortcut, int activation) -> Tensor",
        "bsconv_stage_packed": "(Tensor x, Tensor packed, int distilled) -> (Tensor, Tensor)",
    },
    {
        "bsconv_packed": lambda x, packed, channels, shortcut, activation: empty_map(x, channels),
        "bsconv_stage_packed": lambda x, packed, distilled: (empty_map(x, distilled), empty_map(x, x.shape[1])),
    },
)


def pack_bsconv(
    pw_weight: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor,
    d_weight: Tensor | None = None,
    d_bias: Tensor | None = None,
) -> Tensor | None:
    """Weights in the order in which the CPU kernel reads them, for `packed` of `bsconv`, or with d_* of `bsconv_stage`.

    Returns:
        A vector for this machine's instruction set and for maps of any dtype, or None where the kernel cannot take
        these weights. It is a copy: later changes of the weights do not reach it.

    Raises:
        InputError: a wrong rank, shape, dtype or device, or only one of d_weight and d_bias.
    """
    op = "pack_bsconv"
    _checks.feature_map(op, pw_weight, "pw_weight")
    k, c = pw_weight.shape[:2]
    _checks.weight(op, pw_weight, pw_weight, "pw_weight", (k, c, 1, 1))
    _checks.weight(op, pw_weight, dw_weight, "dw_weight", (k, 1, None, None))
    _checks.weight(op, pw_weight, dw_bias, "dw_bias", (k,))
    if (d_weight is None) != (d_bias is None):
        raise InputError(f"{op}: only one of d_weight and d_bias is None; pass both or neither")
    if d_weight is not None and d_bias is not None:
        _checks.weight(op, pw_weight, d_weight, "d_weight", (None, c, 1, 1))
        _checks.weight(op, pw_weight, d_bias, "d_bias", (d_weight.shape[0],))
    if not can_pack("bsconv", pw_weight) or dw_weight.shape[2:] != (3, 3):
        return None
    with torch.no_grad():
        return torch.ops.fastsr.bsconv_pack(pw_weight, dw_weight, dw_bias, d_weight, d_bias)


def _choose(x: Tensor, weights: tuple[Tensor, ...], shortcut: Tensor | None, stride: int, padding: int) -> str:
    pw_weight, dw_weight, _ = weights
    chosen = select("bsconv", x, _extents(pw_weight), (*weights, shortcut))
    kernel = tuple(dw_weight.shape[2:])
    if chosen != "reference" and (kernel, stride, padding) != ((3, 3), 1, 1):
        reason = (
            f"a {kernel[0]}x{kernel[1]} kernel with stride {stride} and padding {padding}; {chosen} has 3x3, 1 and 1"
        )
        return reference_because("bsconv", reason)
    return chosen


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
    packed: Tensor | None = None,
) -> Tensor:
    """Blueprint separable convolution, BSConvU: act(dw(pw(x)) + shortcut) (BSRN, section 3.2).

    Args:
        x: [N, C, H, W], any strides, float16, bfloat16, float32 or float64.
        pw_weight: [K, C, 1, 1], without bias.
        dw_weight, dw_bias: [K, 1, 3, 3] (any odd kernel) and [K].
        stride, padding: of the depthwise convolution.
        shortcut: [N, K, H', W'] added before the activation, or None.
        activation: "none", "gelu" or "leaky_relu" (slope 0.05).
        packed: what `pack_bsconv` made of the weights; used where the CPU kernel runs without autograd.

    Returns:
        [N, K, H', W'] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("bsconv", x)
    _checks.choice("bsconv", activation, "activation", _checks.ACTIVATIONS)
    others = (dw_weight, dw_bias) if shortcut is None else (dw_weight, dw_bias, shortcut)
    if (stride, padding) == (1, 1) and takes_packed("bsconv", packed, x, pw_weight, *others):
        channels = pw_weight.shape[0]
        if shortcut is not None:
            _checks.shortcut("bsconv", x, shortcut, (x.shape[0], channels, *x.shape[2:]))
        code = _checks.ACTIVATIONS.index(activation)
        return torch.ops.fastsr.bsconv_packed(x, packed, channels, shortcut, code)
    _checks.weight("bsconv", x, pw_weight, "pw_weight", (None, x.shape[1], 1, 1))
    channels = pw_weight.shape[0]
    _checks.weight("bsconv", x, dw_weight, "dw_weight", (channels, 1, None, None))
    _checks.odd_kernel("bsconv", dw_weight, "dw_weight")
    _checks.weight("bsconv", x, dw_bias, "dw_bias", (channels,))
    if stride < 1 or padding < 0:
        raise InputError(f"bsconv: stride is {stride} and padding {padding}; pass stride >= 1 and padding >= 0")
    if shortcut is not None:
        kh, kw = dw_weight.shape[-2:]
        height, width = ((n + 2 * padding - k) // stride + 1 for n, k in ((x.shape[2], kh), (x.shape[3], kw)))
        _checks.shortcut("bsconv", x, shortcut, (x.shape[0], channels, height, width))
    backend = _choose(x, (pw_weight, dw_weight, dw_bias), shortcut, stride, padding)
    if backend != "reference":
        code = _checks.ACTIVATIONS.index(activation)
        return _call[backend](x, pw_weight, dw_weight, dw_bias, shortcut, code)
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
