"""Fits the coefficients of kernels/activation.py. `python -m benchmarks.gelu_fits` prints them with their errors.

Minimax fits by linear programming, of

- the bump: gelu(x) = max(x, 0) + t (t Q(s) - 1/2) with t = min(|x|, X), s = t^2 - X^2 and Q(0) = 1 / (2 X), so that
  nothing is left of it at X and beyond. Powers of t^2 itself cancel in float32: four times the error;
- the tanh form: gelu(x) = x / 2 (1 + tanh(x P(min(x^2, 25))));
- the tail: Phi(-a) = exp(-a^2 / 2) R(s) with s = a / (1 + p a) and R(0) = 1/2: Abramowitz and Stegun's 7.1.26 about
  a = 0 instead of about infinity, so that what float32 rounds is small where GELU is used most.

The printed errors are those of the coefficients in exact arithmetic; what the kernels make of them in float32 is in
docs/gelu.md and held by tests/triton/test_gelu.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import erfc, erfcx

Array = NDArray[np.float64]

BUMPS = ((4.5, 9), (3.75, 6))  # float16, bfloat16
TANH_TERMS = 3
TAIL_TERMS = 6
SCALE = 1e6  # the solver is content with residuals of 1e-7
TAIL_P = np.arange(0.10, 0.36, 0.01)


def minimax(basis: Array, target: Array, weight: Array) -> tuple[Array, float]:
    """Coefficients that minimise max |weight (basis c - target)|, and that maximum."""
    terms = basis.shape[1]
    weighted, goal = basis * (weight * SCALE)[:, None], target * weight * SCALE
    slack = np.full((len(target), 1), -1.0)
    found = linprog(
        np.r_[np.zeros(terms), 1.0],
        A_ub=np.vstack([np.hstack([weighted, slack]), np.hstack([-weighted, slack])]),
        b_ub=np.r_[goal, -goal],
        bounds=[(None, None)] * terms + [(0, None)],
        method="highs-ds",
    )
    coefficients: Array = found.x[:-1]
    return coefficients, float(np.abs(weight * (basis @ coefficients - target)).max())


def fit_bump(limit: float, terms: int) -> tuple[list[float], float]:
    """Coefficients of Q in ascending order, from the constant 1 / (2 X) on, and the largest error of GELU up to X."""
    x = np.maximum(limit * np.sqrt((1 - np.cos(np.linspace(0, np.pi, 1500))) / 2), 1e-4)
    s = (x / limit) ** 2 - 1
    basis = np.stack([s**k for k in range(1, terms)], 1)
    target = (0.5 - 0.5 * erfc(x * np.sqrt(0.5))) / x - 0.5 / limit
    coefficients, error = minimax(basis, target, x * x)
    return [0.5 / limit, *(float(c / limit ** (2 * k)) for k, c in enumerate(coefficients, 1))], error


def fit_tanh() -> tuple[list[float], float]:
    """Coefficients of P in ascending order, and the largest error of GELU with an exact tanh, to first order."""
    x = np.linspace(1e-3, 5, 4000)
    upper, lower = 0.5 * erfc(-x * np.sqrt(0.5)), 0.5 * erfc(x * np.sqrt(0.5))
    basis = np.stack([x ** (2 * k) for k in range(TANH_TERMS)], 1)
    coefficients, error = minimax(basis, np.log(upper / lower) / (2 * x), 2 * x * x * upper * lower)
    return coefficients.tolist(), error


def fit_tail() -> tuple[float, list[float], float]:
    """p, the coefficients of R from the first power of s on, and the largest error of Phi, weighted by max(1, |x|)."""
    a = np.r_[np.linspace(0, 6, 2500), np.linspace(6, 30, 200)]
    target = 0.5 * erfcx(a * np.sqrt(0.5))
    weight = np.exp(-a * a / 2) * np.maximum(1, a)
    best: tuple[float, list[float], float] | None = None
    for p in TAIL_P:
        s = a / (1 + p * a)
        coefficients, error = minimax(np.stack([s**k for k in range(1, TAIL_TERMS + 1)], 1), target - 0.5, weight)
        if best is None or error < best[2]:
            best = float(p), coefficients.tolist(), error
    assert best is not None
    return best


def main() -> None:
    for limit, terms in BUMPS:
        coefficients, error = fit_bump(limit, terms)
        print(f"bump X = {limit}, {terms} terms, error {error:.1e}:", ", ".join(f"{c:.9e}" for c in coefficients))
    coefficients, error = fit_tanh()
    print(f"tanh form, {TANH_TERMS} terms, error {error:.1e}:", ", ".join(f"{c:.9e}" for c in coefficients))
    p, coefficients, error = fit_tail()
    print(f"tail p = {p:.2f}, {TAIL_TERMS} terms, error {error:.1e}:", ", ".join(f"{c:.9e}" for c in coefficients))


if __name__ == "__main__":
    main()
