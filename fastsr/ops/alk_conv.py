"""alk_conv: the asymmetric large-kernel convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsr import _cuda, reference
from fastsr._dispatch import Extents, current_backend, limit, records, select
from fastsr._shapes import LIMITS
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._alk_kept import define_kept
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
from fastsr.reference import Activation, ALKConvWeights

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = {
    "cpu": {"taps": 63},  # csrc/cpu/isa/alk_conv.h
    "cuda": {"taps": 33, "channels out": 128},  # csrc/cuda/alk.h
    "triton": {
        "taps": LIMITS["alk_conv"]["t"],
        "channels out": LIMITS["alk_conv"]["k"],
        "offsets in a row's taps": 2**31 - 1,  # of 32 bits
    },
}

WEIGHTS_SCHEMA = (
    "Tensor pw_weight, Tensor lora1_weight, Tensor lora1_bias, Tensor lora2_weight, Tensor lora2_bias, "
    "Tensor small_weight, Tensor small_bias, Tensor norm_weight, Tensor norm_bias"
)


def check_weights(op: str, x: Tensor, weights: ALKConvWeights) -> None:
    """The weights must fit one another and `x`."""
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


def extents(x: Tensor, pw_weight: Tensor, lora1_weight: Tensor, **_: Any) -> Extents:
    """Those of a call that bound the kernels."""
    channels, taps = pw_weight.shape[0], lora1_weight.shape[2]
    return {"taps": taps, "channels out": channels, "offsets in a row's taps": x.shape[3] * channels * taps}


def fits_cuda(pw_weight: Tensor, lora1_weight: Tensor) -> bool:
    """Whether the CUDA C++ kernels take weights of these sizes."""
    most = MOST["cuda"]
    return lora1_weight.shape[2] <= most["taps"] and pw_weight.shape[0] <= most["channels out"]


def _fake(x: Tensor, pw_weight: Tensor, *rest: Any) -> Tensor:
    return empty_map(x, pw_weight.shape[0])


def _fake_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    weights = rest[: len(ALKConvWeights._fields)]
    return (empty_map(x, x.shape[1]), *(torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    gradients = ctx.call_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.activation)
    return (*gradients, None, None)


SCHEMA = f"(Tensor x, {WEIGHTS_SCHEMA}, float eps, int activation) -> Tensor"
BACKWARD_SCHEMA = (
    f"(Tensor grad, Tensor x, {WEIGHTS_SCHEMA}, float eps, int activation) -> ({', '.join(['Tensor'] * 10)})"
)

_call = define_choice(
    "alk_conv",
    SCHEMA,
    BACKWARD_SCHEMA,
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
_call_kept = define_kept("alk_conv", SCHEMA, BACKWARD_SCHEMA, fake=_fake, fake_backward=_fake_backward)
register_cpu("alk_conv", KERNEL_DTYPES)
register_triton("alk_conv", KERNEL_DTYPES)
register_cuda("alk_conv", SCHEMA, BACKWARD_SCHEMA, KERNEL_DTYPES, tf32=True)
limit("alk_conv", extents, MOST)


def _fake_packed(x: Tensor, packed: Tensor, channels: int, *rest: Any) -> Tensor:
    return empty_map(x, channels)


def _fake_stage_packed(x: Tensor, packed: Tensor, distilled: int, *rest: Any) -> tuple[Tensor, Tensor]:
    return empty_map(x, distilled), empty_map(x, x.shape[1])


# CUDA C++ cannot read from `packed` for how many taps it was made: that would wait for the GPU.
_PACKED = {
    "alk_conv_packed": "(Tensor x, Tensor packed, int channels, int taps, float eps, int activation) -> Tensor",
    "alk_stage_packed": "(Tensor x, Tensor packed, int distilled, int taps, float eps) -> (Tensor, Tensor)",
}
define_packed(
    "alk_conv",
    f"({WEIGHTS_SCHEMA}, Tensor? d_weight, Tensor? d_bias) -> Tensor",
    _PACKED,
    {"alk_conv_packed": _fake_packed, "alk_stage_packed": _fake_stage_packed},
)
for _name, _schema in _PACKED.items():
    _cuda.define_fusion(_name, _schema)


def pack_alk_conv(
    weights: ALKConvWeights, d_weight: Tensor | None = None, d_bias: Tensor | None = None
) -> Tensor | None:
    """Weights in the order in which a kernel reads them, for `packed` of `alk_conv`, or of `alk_stage` with d's.

    Returns:
        A vector for this machine's instruction set and for maps of any dtype, on a GPU bytes for maps of the weights'
        dtype, or None where no kernel can take these weights. It is a copy: later changes of the weights do not reach
        it.
    """
    order = ("cuda", "cpu") if current_backend() == "cuda" else ("cpu", "cuda")
    backend = next((name for name in order if can_pack("alk_conv", weights.pw_weight, name)), None)
    taps, channels = weights.lora1_weight.shape[2], weights.pw_weight.shape[0]
    if backend is None or taps > MOST[backend]["taps"] or channels > MOST[backend].get("channels out", channels):
        return None
    with torch.no_grad():
        return torch.ops.fastsr.alk_conv_pack(*weights, d_weight, d_bias)


def alk_conv(
    x: Tensor,
    weights: ALKConvWeights,
    *,
    eps: float = 1e-6,
    activation: Activation = "none",
    packed: Tensor | None = None,
) -> Tensor:
    """Asymmetric large-kernel convolution (ALKDNet, section 3.3, equation 11).

    With u = pw(x): act(pixel_norm(GELU(LoRA1(u)) + GELU(LoRA2(u)) + GELU(small_conv(u)))).

    Args:
        x: [N, C, H, W], any strides, float16, bfloat16, float32 or float64.
        weights: ALKConvWeights for C channels in and K out; the kernel k may be any odd number.
        eps: of the pixel norm.
        activation: behind the norm: "none", "gelu" or "leaky_relu".
        packed: what `pack_alk_conv` made of `weights`; used where its kernel runs without autograd.

    Returns:
        [N, K, H, W] in the dtype of `x`. Sums and statistics are taken in float32 (float64 for float64).

    Raises:
        InputError: a wrong rank, shape, dtype, device or activation.
        BackendError: a backend is forced that cannot run this.
    """
    _checks.feature_map("alk_conv", x)
    _checks.choice("alk_conv", activation, "activation", _checks.ACTIVATIONS)
    if packed is not None and takes_packed("alk_conv", packed, x, *weights):
        channels, taps = weights.pw_weight.shape[0], weights.lora1_weight.shape[2]
        code = _checks.ACTIVATIONS.index(activation)
        return torch.ops.fastsr.alk_conv_packed(x, packed, channels, taps, eps, code)
    check_weights("alk_conv", x, weights)
    backend = select("alk_conv", x, extents(x, *weights[:2]), weights)
    if backend == "reference":
        return reference.alk_conv(x, weights, eps=eps, activation=activation)
    code = _checks.ACTIVATIONS.index(activation)
    if backend == "cuda" and records(x, *weights):
        return _call_kept(x, *weights, eps, code)[0]
    return _call[backend](x, *weights, eps, code)
