"""cca_norm in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from simulator import DTYPES, Library, View, poisoned
from torch import Tensor

from fastsr.ops._define import empty_map

LIBRARY = Library("cca_norm")


class CcaCall(ctypes.Structure):
    """CcaCall of cca_norm.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype", "hidden")),
        ("eps", ctypes.c_double),
        ("parameters", ctypes.c_void_p * 6),
        *((name, View) for name in ("x", "shortcut", "y")),
        ("statistics", ctypes.c_void_p),
        ("dx", View),
        ("gradients", ctypes.c_void_p * 6),
        ("workspace", ctypes.c_void_p),
    )


def pointers(tensors: Sequence[Tensor | None]) -> Any:
    return (ctypes.c_void_p * 6)(*(None if t is None else t.data_ptr() for t in tensors))


def call_of(x: Tensor, parameters: Sequence[Tensor | None], statistics: Tensor, eps: float) -> CcaCall:
    du0 = parameters[0]
    assert du0 is not None
    call = CcaCall(dtype=DTYPES.index(x.dtype), parameter_dtype=DTYPES.index(du0.dtype), hidden=du0.shape[0], eps=eps)
    call.parameters, call.x, call.statistics = pointers(parameters), View.of(x), statistics.data_ptr()
    return call


def cca_norm(x: Tensor, shortcut: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *given, eps = rest
    parameters = [None if p is None else p.contiguous() for p in given]
    y = poisoned(empty_map(x, x.shape[1]))
    statistics = torch.full((x.shape[0], 2, x.shape[1]), torch.nan, dtype=torch.float64)
    if x.numel() == 0:
        return y, statistics.zero_()
    call = call_of(x, parameters, statistics, eps)
    call.shortcut, call.y = View.of(shortcut), View.of(y)
    LIBRARY.run("sim_cca_norm_forward", call)
    return y, statistics


def cca_norm_backward(grad: Tensor, x: Tensor, statistics: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *layers, norm, eps = rest
    parameters = [p.contiguous() for p in layers] + [None if norm is None else norm.contiguous()]
    dx = poisoned(empty_map(x, x.shape[1]))
    like = layers[3] if norm is None else norm
    gradients = [poisoned(torch.empty(p.shape, dtype=p.dtype)) for p in (*layers, like, like)]
    if x.numel() == 0:
        return dx, *(g.zero_() for g in gradients)
    call = call_of(x, [*parameters, None], statistics, eps)
    call.y, call.dx, call.gradients = View.of(grad), View.of(dx), pointers(gradients)
    LIBRARY.run("sim_cca_norm_backward", call)
    return dx, *gradients


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""
    return {f.__name__: f for f in (cca_norm, cca_norm_backward)}
