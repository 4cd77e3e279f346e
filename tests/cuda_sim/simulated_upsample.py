"""upsample in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import simulator
import torch
from simulator import DTYPES, Library, View
from torch import Tensor

from fastsr.ops._define import empty_map

LIBRARY = Library("upsample")


class UpsampleCall(ctypes.Structure):
    """UpsampleCall of upsample.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype", "scale", "residual", "tf32")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, View) for name in ("x", "y", "lr", "dx", "d_lr")),
        *((name, ctypes.c_void_p) for name in ("d_weight", "d_bias", "workspace")),
    )


def _call(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, lr: Tensor | None, scale: int, residual: int
) -> UpsampleCall:
    call = UpsampleCall(DTYPES.index(x.dtype), DTYPES.index(weight.dtype), scale, residual, int(simulator.tf32))
    call.weight, call.bias = weight.data_ptr(), bias.data_ptr()
    call.x, call.y = View.of(x), View.of(y)
    if lr is not None:
        call.lr = View.of(lr)
    return call


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""

    def upsample(x: Tensor, weight: Tensor, bias: Tensor, lr: Tensor | None, scale: int, residual: int) -> Tensor:
        y = empty_map(x, weight.shape[0] // scale**2, x.shape[2] * scale, x.shape[3] * scale).fill_(torch.nan)
        weight, bias = weight.contiguous(), bias.contiguous()
        LIBRARY.run("sim_upsample_forward", _call(x, y, weight, bias, lr, scale, residual))
        return y

    def upsample_backward(
        grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, lr: Tensor | None, *codes: int
    ) -> tuple[Tensor, ...]:
        scale, residual, lr_gradient = codes
        weight, bias = weight.contiguous(), bias.contiguous()
        call = _call(x, grad, weight, bias, lr, scale, residual)
        wanted = lr is not None and lr_gradient and residual != 0
        dx = empty_map(x, x.shape[1]).fill_(torch.nan)
        d_lr = empty_map(lr, lr.shape[1]).fill_(torch.nan) if wanted and lr is not None else x.new_empty(0)
        d_weight, d_bias = torch.full_like(weight, torch.nan), torch.full_like(bias, torch.nan)
        call.dx = View.of(dx)
        if wanted:
            call.d_lr = View.of(d_lr)
        call.d_weight, call.d_bias = d_weight.data_ptr(), d_bias.data_ptr()
        LIBRARY.run("sim_upsample_backward", call)
        return dx, d_weight, d_bias, d_lr

    return {f.__name__: f for f in (upsample, upsample_backward)}
