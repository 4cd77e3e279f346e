"""conv_mix in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import simulator
import torch
from simulator import DTYPES, Library, View
from torch import Tensor

from fastsr import _gelu
from fastsr.ops._define import empty_map

LIBRARY = Library("conv_mix")


class ConvMixCall(ctypes.Structure):
    """ConvMixCall of conv_mix.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype", "activation", "accuracy", "tf32")),
        ("parameters", ctypes.c_void_p * 6),
        *((name, View) for name in ("x", "shortcut", "y", "dx", "d_shortcut")),
        ("gradients", ctypes.c_void_p * 6),
        ("workspace", ctypes.c_void_p),
    )


def _pointers(tensors: Sequence[Tensor | None]) -> Any:
    return (ctypes.c_void_p * 6)(*(None if t is None else t.data_ptr() for t in tensors))


def call_of(
    x: Tensor, shortcut: Tensor, y: Tensor, parameters: Sequence[Tensor | None], activation: int
) -> ConvMixCall:
    pw = parameters[2]
    assert pw is not None
    call = ConvMixCall(DTYPES.index(x.dtype), DTYPES.index(pw.dtype), activation)
    call.accuracy, call.tf32 = _gelu.code(), int(simulator.tf32)
    call.parameters = _pointers(parameters)
    call.x, call.shortcut, call.y = View.of(x), View.of(shortcut), View.of(y)
    return call


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""

    def conv_mix(x: Tensor, shortcut: Tensor, *rest: Any) -> Tensor:
        *given, activation = rest
        parameters = [None if p is None else p.contiguous() for p in given]
        y = empty_map(x, given[4].shape[0]).fill_(torch.nan)
        LIBRARY.run("sim_conv_mix_forward", call_of(x, shortcut, y, parameters, activation))
        return y

    def conv_mix_backward(grad: Tensor, x: Tensor, shortcut: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *given, activation = rest
        parameters = [None if p is None else p.contiguous() for p in given]
        call = call_of(x, shortcut, grad, parameters, activation)
        dx, d_shortcut = (empty_map(x, x.shape[1]).fill_(torch.nan) for _ in range(2))
        gradients = [None if p is None else torch.full_like(p, torch.nan) for p in parameters]
        call.gradients = _pointers(gradients)
        call.dx, call.d_shortcut = View.of(dx), View.of(d_shortcut)
        LIBRARY.run("sim_conv_mix_backward", call)
        return (dx, d_shortcut, *(x.new_empty(0) if g is None else g for g in gradients))

    return {f.__name__: f for f in (conv_mix, conv_mix_backward)}
