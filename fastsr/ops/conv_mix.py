"""conv_mix: MLRN's convolution mixer with its pointwise tail."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import reference
from fastsr._dispatch import Extents, limit, select
from fastsr._shapes import LIMITS
from fastsr.ops import _checks
from fastsr.ops._define import define_choice, empty_map, register_cpu, register_cuda, register_triton
from fastsr.reference import Activation

# A program holds all channels of its pixels, and the 1x1 weights in shared memory. Triton does not bound the channels
# out, CUDA C++ does (csrc/cuda/conv_mix.h).
MOST = {"cuda": {"channels": 64, "channels out": 64}, "triton": {"channels": LIMITS["conv_mix"]["c"]}}

_WEIGHTS = (
    "Tensor? dw_weight, Tensor? dw_bias, Tensor pw_weight, Tensor pw_bias, Tensor c5_weight, Tensor c5_bias, "
    "int activation"
)


def _fake(x: Tensor, shortcut: Tensor, *weights: Any) -> Tensor:
    c5_weight = weights[4]
    return empty_map(x, c5_weight.shape[0])


def _fake_backward(grad: Tensor, x: Tensor, shortcut: Tensor, *weights: Any) -> tuple[Tensor, ...]:
    # An absent depthwise convolution has an empty gradient.
    parameters = [x.new_empty(0) if w is None else w.new_empty(w.shape) for w in weights[:6]]
    return (empty_map(x, x.shape[1]), empty_map(x, x.shape[1]), *parameters)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, activation = inputs
    ctx.save_for_backward(*tensors)
    ctx.activation = activation


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    gradients = ctx.call_backward(grad, *tensors, ctx.activation)
    return (*(None if t is None else g for t, g in zip(tensors, gradients, strict=True)), None)


SCHEMA = f"(Tensor x, Tensor shortcut, {_WEIGHTS}) -> Tensor"
BACKWARD_SCHEMA = (
    f"(Tensor grad, Tensor x, Tensor shortcut, {_WEIGHTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_call = define_choice(
    "conv_mix",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
register_cpu("conv_mix", (torch.float32, torch.float16, torch.bfloat16))
register_triton("conv_mix")
register_cuda("conv_mix", SCHEMA, BACKWARD_SCHEMA, tf32=True)


def _extents(x: Tensor, c5_weight: Tensor, **_: Any) -> Extents:
    return {"channels": x.shape[1], "channels out": c5_weight.shape[0]}


limit("conv_mix", _extents, MOST)


def conv_mix(
    x: Tensor,
    shortcut: Tensor,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor,
    c5_weight: Tensor,
    c5_bias: Tensor,
    *,
    activation: Activation = "gelu",
) -> Tensor:
    """MLRN's convolution mixer with the 1x1 behind it (MLRN, section 3.1, equations 3 to 5 without the ESA).

    d = act(dw3x3(x)) + x; e = act(pw(d)); the result is c5(e + shortcut).

    Args:
        x: [N, C, H, W], the output of the block's second 3x3 convolution.
        shortcut: [N, C, H, W], the block's input.
        dw_weight, dw_bias: depthwise [C, 1, 3, 3] and [C], or both None: the ablation without it, d = x.
        pw_weight, pw_bias: [C, C, 1, 1] and [C].
        c5_weight, c5_bias: [K, C, 1, 1] and [K].
        activation: "gelu" or, for the ablation, "leaky_relu".

    Returns:
        [N, K, H, W] in the dtype of `x`.

    Raises:
        InputError: a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("conv_mix", x)
    _checks.same_shape("conv_mix", x, shortcut, "shortcut")
    _checks.mix_weights("conv_mix", x, dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias)
    _checks.choice("conv_mix", activation, "activation", _checks.ACTIVATIONS)
    weights = (dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias)
    backend = select("conv_mix", x, _extents(x, c5_weight), (shortcut, *weights))
    if backend == "reference":
        return reference.conv_mix(x, shortcut, *weights, activation=activation)
    return _call[backend](x, shortcut, *weights, _checks.ACTIVATIONS.index(activation))
