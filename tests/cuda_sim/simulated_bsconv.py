"""bsconv and its stage in the simulator."""

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

LIBRARY = Library("bsconv")
PARAMETERS = ("pw", "dw", "dw_bias", "distil", "distil_bias")
GRADIENTS = ("d_pw", "d_dw", "d_bias", "d_distil", "d_distil_bias")


class BsconvCall(ctypes.Structure):
    """BsconvCall of bsconv.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype", "activation", "accuracy", "tf32")),
        *((name, ctypes.c_void_p) for name in PARAMETERS),
        *((name, View) for name in ("x", "shortcut", "y", "distilled", "dx", "d_shortcut")),
        *((name, ctypes.c_void_p) for name in (*GRADIENTS, "workspace")),
    )


def _call(x: Tensor, parameters: Sequence[Tensor], shortcut: Tensor | None, y: Tensor, activation: int) -> BsconvCall:
    call = BsconvCall(DTYPES.index(x.dtype), DTYPES.index(parameters[0].dtype), activation)
    call.accuracy, call.tf32 = _gelu.code(), int(simulator.tf32)
    for name, parameter in zip(PARAMETERS, parameters, strict=False):
        setattr(call, name, parameter.data_ptr())
    call.x, call.y = View.of(x), View.of(y)
    if shortcut is not None:
        call.shortcut = View.of(shortcut)
    return call


def _gradients(call: BsconvCall, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Poisoned, and given to the call."""
    gradients = [torch.full_like(p, torch.nan) for p in parameters]
    for name, gradient in zip(GRADIENTS, gradients, strict=False):
        setattr(call, name, gradient.data_ptr())
    return gradients


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""

    def bsconv(x: Tensor, pw: Tensor, dw: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int) -> Tensor:
        parameters = [p.contiguous() for p in (pw, dw, bias)]
        y = poisoned(empty_map(x, pw.shape[0]))
        LIBRARY.run("sim_bsconv_forward", _call(x, parameters, shortcut, y, activation))
        return y

    def bsconv_stage(
        x: Tensor, d_weight: Tensor, d_bias: Tensor, pw: Tensor, dw: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        parameters = [p.contiguous() for p in (pw, dw, bias, d_weight, d_bias)]
        y, distilled = (poisoned(empty_map(x, p.shape[0])) for p in (pw, d_weight))
        call = _call(x, parameters, x, y, 1)
        call.distilled = View.of(distilled)
        LIBRARY.run("sim_bsconv_forward", call)
        return distilled, y

    def bsconv_backward(
        grad: Tensor, x: Tensor, pw: Tensor, dw: Tensor, bias: Tensor, shortcut: Tensor | None, activation: int
    ) -> tuple[Tensor, ...]:
        parameters = [p.contiguous() for p in (pw, dw, bias)]
        call = _call(x, parameters, shortcut, grad, activation)
        dx = poisoned(empty_map(x, x.shape[1]))
        d_shortcut = x.new_empty(0)
        call.dx = View.of(dx)
        gradients = _gradients(call, parameters)
        if shortcut is not None and activation:
            d_shortcut = poisoned(empty_map(x, pw.shape[0]))
            call.d_shortcut = View.of(d_shortcut)
        LIBRARY.run("sim_bsconv_backward", call)
        return (dx, *gradients, d_shortcut)

    def bsconv_stage_backward(
        grad_distilled: Tensor,
        grad: Tensor,
        x: Tensor,
        d_weight: Tensor,
        d_bias: Tensor,
        pw: Tensor,
        dw: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, ...]:
        parameters = [p.contiguous() for p in (pw, dw, bias, d_weight, d_bias)]
        call = _call(x, parameters, x, grad, 1)
        call.distilled = View.of(grad_distilled)
        dx = poisoned(empty_map(x, x.shape[1]))
        call.dx = View.of(dx)
        gradients = _gradients(call, parameters)
        LIBRARY.run("sim_bsconv_backward", call)
        return (dx, *gradients[3:], *gradients[:3])

    return {f.__name__: f for f in (bsconv, bsconv_stage, bsconv_backward, bsconv_stage_backward)}
