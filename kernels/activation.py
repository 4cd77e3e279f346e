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
from fastsr.kernels import launch

NONE = tl.constexpr(0)
LEAKY = tl.constexpr(1)
ERF = tl.constexpr(2)  # the error function itself
TAIL = tl.constexpr(3)  # Phi(-|x|) = exp(-x^2 / 2) R(|x| / (1 + p |x|)): as accurate in float32, half the instructions
BUMP9 = tl.constexpr(4)  # max(x, 0) + t (t Q(t^2 - X^2) - 1/2), t = min(|x|, X): no special function; for float16
BUMP6 = tl.constexpr(5)  # the same, shorter; for bfloat16
TANH = tl.constexpr(6)  # x / 2 (1 + tanh(x P(x^2)))
TANH_APPROX = tl.constexpr(7)  # the same with NVIDIA's tanh.approx

LEAKY_SLOPE = tl.constexpr(0.05)
SQRT_HALF = tl.constexpr(0.7071067811865476)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
MINUS_HALF_LOG2E = tl.constexpr(-0.7213475204444817)
TWO_LOG2E = tl.constexpr(2.8853900817779268)
TAIL_LIMIT = tl.constexpr(16.0)  # where the tail is 0 already; infinity times 0 would be NaN
TANH_LIMIT = tl.constexpr(25.0)  # P turns down beyond its fit; tanh is 1 long before

FORMS = ("none", "leaky", "erf", "tail", "bump9", "bump6", "tanh", "tanh_approx")  # names of 0, 1, ...


@triton.jit
def tail(a):
    """Phi(-a) and exp(-a^2 / 2) for a >= 0."""
    t = tl.math.rsqrt(1.0 + 0.2 * a)  # one instruction; a division takes seven
    s = a * (t * t)
    e = tl.exp2(a * a * MINUS_HALF_LOG2E)
    r = 7.021654855e-05 * s - 1.171869182e-03
    r = r * s + 9.536514467e-03
    r = r * s - 4.894486222e-02
    r = r * s + 1.702126585e-01
    r = r * s - 3.989423373e-01
    return e * (r * s + 0.5), e


@triton.jit
def bump(x, NINE: tl.constexpr):
    if NINE:
        t = tl.minimum(tl.abs(x), 4.5)
        s = t * t - 20.25
        q = 3.000009557e-11 * s + 1.576100439e-09
        q = q * s + 3.698447755e-08
        q = q * s + 4.400038748e-07
        q = q * s + 3.217076709e-06
        q = q * s + 6.957000686e-06
        q = q * s + 1.210130405e-04
        q = q * s - 2.730826300e-03
        q = q * s + 1.111111111e-01
    else:
        t = tl.minimum(tl.abs(x), 3.75)
        s = t * t - 14.0625
        q = -4.668133046e-07 * s - 6.814160098e-06
        q = q * s - 6.536972285e-05
        q = q * s + 1.177534881e-04
        q = q * s - 4.811154280e-03
        q = q * s + 1.333333333e-01
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
        a = tl.minimum(tl.abs(x), TAIL_LIMIT)
        q, _ = tail(a)
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * q
    elif FORM == BUMP9:
        y = bump(x, True)
    elif FORM == BUMP6:
        y = bump(x, False)
    elif FORM == TANH:
        # (1 + tanh v) / 2 = 1 - 1 / (exp(2 v) + 1)
        y = x * (1.0 - 1.0 / (tl.exp2(tanh_argument(x) * TWO_LOG2E) + 1.0))
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
        return TANH_APPROX.value if launch.architecture(x).startswith("sm_") else TANH.value
    return {torch.float16: BUMP9, torch.bfloat16: BUMP6}.get(x.dtype, TAIL).value
