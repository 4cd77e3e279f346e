"""pointwise in the simulator."""

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

MAX_MAPS = 16  # csrc/cuda/pointwise.h
LIBRARY = Library("pointwise")


class PointwiseCall(ctypes.Structure):
    """PointwiseCall of pointwise.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype", "inputs", "activation", "accuracy", "tf32")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        ("x", View * MAX_MAPS),
        *((name, View) for name in ("y", "shortcut")),
        ("dx", View * MAX_MAPS),
        ("d_shortcut", View),
        *((name, ctypes.c_void_p) for name in ("d_weight", "d_bias", "workspace")),
    )


def views(maps: Sequence[Tensor]) -> Any:
    return (View * MAX_MAPS)(*(View.of(x) for x in maps))


def call_of(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int
) -> PointwiseCall:
    call = PointwiseCall(dtype=DTYPES.index(inputs[0].dtype), parameter_dtype=DTYPES.index(weight.dtype))
    call.inputs, call.activation = len(inputs), activation
    call.accuracy, call.tf32 = _gelu.code(), int(simulator.tf32)
    call.weight, call.bias = weight.data_ptr(), bias.data_ptr()
    call.x = views(inputs)
    if shortcut is not None:
        call.shortcut = View.of(shortcut)
    return call


def pointwise(inputs: list[Tensor], weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int) -> Tensor:
    weight, bias = weight.contiguous(), bias.contiguous()
    y = poisoned(empty_map(inputs[0], weight.shape[0]))
    call = call_of(inputs, weight, bias, shortcut, activation)
    call.y = View.of(y)
    LIBRARY.run("sim_pointwise_forward", call)
    return y


def pointwise_backward(
    grad: Tensor, inputs: list[Tensor], weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    weight, bias = weight.contiguous(), bias.contiguous()
    dx = [poisoned(empty_map(x, x.shape[1])) for x in inputs]
    d_weight, d_bias = poisoned(torch.empty_like(weight)), poisoned(torch.empty_like(bias))
    call = call_of(inputs, weight, bias, shortcut, activation)
    d_shortcut = grad.new_empty(0)
    if shortcut is not None and activation != 0:
        d_shortcut = poisoned(empty_map(inputs[0], weight.shape[0]))
        call.d_shortcut = View.of(d_shortcut)
    call.y, call.dx = View.of(grad), views(dx)
    call.d_weight, call.d_bias = d_weight.data_ptr(), d_bias.data_ptr()
    LIBRARY.run("sim_pointwise_backward", call)
    return dx, d_weight, d_bias, d_shortcut


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""
    return {f.__name__: f for f in (pointwise, pointwise_backward)}
