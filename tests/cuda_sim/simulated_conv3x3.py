"""conv3x3_gelu in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import simulator
import torch
from simulator import DTYPES, Library, View
from torch import Tensor

from fastsr import _gelu
from fastsr.ops._define import empty_map

LIBRARY = Library("conv3x3")


class Conv3x3Call(ctypes.Structure):
    """Conv3x3Call of conv3x3.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype", "activation", "accuracy", "tf32")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, View) for name in ("x", "y", "shortcut", "dx")),
        *((name, ctypes.c_void_p) for name in ("d_weight", "d_bias", "workspace")),
    )


def _call(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, activation: int) -> Conv3x3Call:
    call = Conv3x3Call(DTYPES.index(x.dtype), DTYPES.index(weight.dtype), activation)
    call.accuracy, call.tf32 = _gelu.code(), int(simulator.tf32)
    call.weight, call.bias = weight.data_ptr(), bias.data_ptr()
    call.x, call.y = View.of(x), View.of(y)
    return call


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""

    def conv3x3_gelu(x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int) -> Tensor:
        y = empty_map(x, weight.shape[0]).fill_(torch.nan)
        weight, bias = weight.contiguous(), bias.contiguous()
        call = _call(x, y, weight, bias, activation)
        if shortcut is not None:
            call.shortcut = View.of(shortcut)
        LIBRARY.run("sim_conv3x3_forward", call)
        return y

    def conv3x3_gelu_backward(
        grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, activation: int, needs_dx: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = weight.contiguous(), bias.contiguous()
        call = _call(x, grad, weight, bias, activation)
        dx = empty_map(x, x.shape[1]).fill_(torch.nan) if needs_dx else x.new_empty(0)
        d_weight, d_bias = torch.full_like(weight, torch.nan), torch.full_like(bias, torch.nan)
        if needs_dx:
            call.dx = View.of(dx)
        call.d_weight, call.d_bias = d_weight.data_ptr(), d_bias.data_ptr()
        LIBRARY.run("sim_conv3x3_backward", call)
        return dx, d_weight, d_bias

    return {f.__name__: f for f in (conv3x3_gelu, conv3x3_gelu_backward)}
