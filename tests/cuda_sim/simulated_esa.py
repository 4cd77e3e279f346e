"""esa in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import simulator
import torch
from simulator import DTYPES, Library, View, poisoned
from torch import Tensor

from fastsr import _gelu
from fastsr.ops._define import empty_map

LIBRARY = Library("esa")
MAX_PARAMETERS = 18


class EsaCall(ctypes.Structure):
    """EsaCall of esa.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype", "f", "padding", "accuracy", "tf32", "count")),
        ("parameters", ctypes.c_void_p * MAX_PARAMETERS),
        *((name, View) for name in ("x", "y", "reduced", "dx")),
        ("gradients", ctypes.c_void_p * MAX_PARAMETERS),
        ("workspace", ctypes.c_void_p),
    )


def pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * MAX_PARAMETERS)(*(t.data_ptr() for t in tensors))


def call_of(x: Tensor, weights: Sequence[Tensor], padding: int) -> EsaCall:
    call = EsaCall(dtype=DTYPES.index(x.dtype), parameter_dtype=DTYPES.index(weights[0].dtype), padding=padding)
    call.f, call.count = weights[0].shape[0], len(weights)
    call.accuracy, call.tf32 = _gelu.code(), int(simulator.tf32)
    call.parameters, call.x = pointers(weights), View.of(x)
    return call


def _forward(x: Tensor, reduced: Tensor | None, weights: list[Tensor], conv2_padding: int) -> Tensor:
    weights = [w.contiguous() for w in weights]
    y = poisoned(empty_map(x, x.shape[1]))
    if x.numel() > 0:
        call = call_of(x, weights, conv2_padding)
        call.y = View.of(y)
        if reduced is not None:
            call.reduced = View.of(reduced)
        LIBRARY.run("sim_esa_forward", call)
    return y


def esa(x: Tensor, weights: list[Tensor], conv2_padding: int) -> Tensor:
    return _forward(x, None, weights, conv2_padding)


def esa_reduced(x: Tensor, reduced: Tensor, weights: list[Tensor], conv2_padding: int) -> Tensor:
    return _forward(x, reduced, weights, conv2_padding)


def esa_backward(grad: Tensor, x: Tensor, weights: list[Tensor], conv2_padding: int) -> tuple[Tensor, list[Tensor]]:
    weights = [w.contiguous() for w in weights]
    dx = poisoned(empty_map(x, x.shape[1]))
    gradients = [poisoned(torch.empty_like(w)) for w in weights]
    if x.numel() == 0:
        return dx, [g.zero_() for g in gradients]
    call = call_of(x, weights, conv2_padding)
    call.y, call.dx, call.gradients = View.of(grad), View.of(dx), pointers(gradients)
    LIBRARY.run("sim_esa_backward", call)
    return dx, gradients


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""
    return {f.__name__: f for f in (esa, esa_backward, esa_reduced)}
