"""GELU in three accuracies, LeakyReLU, and their derivatives, chosen at compile time.

    GELU(x)  = x Phi(x),  Phi(x) = (1 + erf(x / sqrt 2)) / 2
    GELU'(x) = Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)
    LeakyReLU(x) = max(x, 0.05 x)

A kernel takes a FORM, one of the constants below, which `form` picks from the activation, the dtype of the map and the
accuracy that `fastsr.set_gelu` set. The polynomials are fitted by benchmarks/gelu_fits.py; docs/gelu.md has the errors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsr import _gelu
from fastsr.kernels.launch import architecture

NONE = tl.constexpr(0)
LEAKY = tl.constexpr(1)
ERF = tl.constexpr(2)  # the error function itself
TAIL = tl.constexpr(3)  # Phi(-|x|) = exp(-x^2 / 2) R(1 / (1 + p |x|)): as accurate as float32, half the instructions
BUMP9 = tl.constexpr(4)  # max(x, 0) + t (t Q(t^2) - 1/2), t = min(|x|, X): no special function; for float16
BUMP6 = tl.constexpr(5)  # the same, shorter; for bfloat16
TANH = tl.constexpr(6)  # x / 2 (1 + tanh(x P(x^2)))
TANH_APPROX = tl.constexpr(7)  # the same with NVIDIA's tanh.approx

LEAKY_SLOPE = tl.constexpr(0.05)
SQRT_HALF = tl.constexpr(0.7071067811865476)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
MINUS_HALF_LOG2E = tl.constexpr(-0.7213475204444817)
TWO_LOG2E = tl.constexpr(2.8853900817779268)
TANH_LIMIT = tl.constexpr(25.0)  # P turns down beyond its fit; tanh is 1 long before

FORMS = ("none", "leaky", "erf", "tail", "bump9", "bump6", "tanh", "tanh_approx")  # names of 0, 1, ...


@triton.jit
def tail(a):
    """Phi(-a) and exp(-a^2 / 2) for a >= 0."""
    t = 1.0 / (1.0 + 0.28 * a)
    e = tl.exp2(a * a * MINUS_HALF_LOG2E)
    r = -1.063287338e-01
    r = r * t + 3.920677158e-01
    r = r * t - 2.406705257e-01
    r = r * t + 2.719731581e-01
    r = r * t + 6.622919807e-02
    r = r * t + 1.167291763e-01
    return e * (r * t), e


@triton.jit
def bump(x, NINE: tl.constexpr):
    if NINE:
        t = tl.minimum(tl.abs(x), 4.5)
        z = t * t
        q = 3.000009556e-11 * z - 3.283915043e-09
        q = q * z + 1.580258376e-07
        q = q * z - 4.431687428e-06
        q = q * z + 8.120974979e-05
        q = q * z - 1.036253595e-03
        q = q * z + 9.580654812e-03
        q = q * z - 6.597727282e-02
        q = q * z + 3.987085759e-01
    else:
        t = tl.minimum(tl.abs(x), 3.75)
        z = t * t
        q = -4.668133046e-07 * z + 2.600865038e-05
        q = q * z - 6.052147620e-04
        q = q * z + 7.772055980e-03
        q = q * z - 6.238336729e-02
        q = q * z + 3.963030690e-01
    # t hides a NaN; the maximum must not.
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + t * (t * q - 0.5)


@triton.jit
def tanh_argument(x):
    z = tl.minimum(x * x, TANH_LIMIT)
    return x * ((-3.515925482e-04 * z + 3.700599397e-02) * z + 7.975075881e-01)


@triton.jit
def activate(x, FORM: tl.constexpr):
    """The activation of float32 values."""
    if FORM == NONE:
        y = x
    elif FORM == LEAKY:
        y = tl.where(x < 0.0, x * LEAKY_SLOPE, x)
    elif FORM == ERF:
        y = 0.5 * x * (1.0 + tl.math.erf(x * SQRT_HALF))
    elif FORM == TAIL:
        a = tl.abs(x)
        q, _ = tail(a)
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * q
    elif FORM == BUMP9:
        y = bump(x, True)
    elif FORM == BUMP6:
        y = bump(x, False)
    elif FORM == TANH:
        # 1 + tanh v = 2 - 2 / (exp(2 v) + 1)
        y = x - x / (tl.exp2(tanh_argument(x) * TWO_LOG2E) + 1.0)
    else:
        tl.static_assert(FORM == TANH_APPROX)
        t = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [tanh_argument(x)], dtype=tl.float32, is_pure=True, pack=1
        )
        y = 0.5 * x * t + 0.5 * x
    return y


@triton.jit
def derivative(x, FORM: tl.constexpr):
    """The derivative of the activation at float32 values; that of the exact GELU whatever the accuracy."""
    if FORM == NONE:
        d = tl.full(x.shape, 1.0, tl.float32)
    elif FORM == LEAKY:
        d = tl.where(x > 0.0, 1.0, LEAKY_SLOPE)
    else:
        q, e = tail(tl.abs(x))
        d = tl.where(x < 0.0, q, 1.0 - q) + x * e * INV_SQRT_2PI
    return d


def form(activation: int, x: Tensor) -> int:
    """The FORM for an operator's `activation` (0 none, 1 gelu, 2 leaky_relu) of a map like `x`."""
    if activation == 0:
        return NONE.value
    if activation == 2:
        return LEAKY.value
    accuracy = _gelu.current_gelu()
    if accuracy == "exact":
        return ERF.value
    if accuracy == "fast":
        return TANH_APPROX.value if architecture(x).startswith("sm_") else TANH.value
    return {torch.float16: BUMP9, torch.bfloat16: BUMP6}.get(x.dtype, TAIL).value
